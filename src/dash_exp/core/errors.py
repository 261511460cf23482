"""The one exception that is shown to the user as a message instead of a traceback."""


class UserError(Exception):
    """Something that the user can fix.

    `where` names the setting or the file and line, `wrong` says what is wrong, `right` what to write instead. With empty ones
    `where` is a whole message, as another process has written it.
    """

    def __init__(self, where: str, wrong: str, right: str) -> None:
        super().__init__(where, wrong, right)
        self.where, self.wrong, self.right = where, wrong, right

    def __str__(self) -> str:
        return f"{self.where}: {self.wrong}. {self.right}." if self.wrong else self.where
