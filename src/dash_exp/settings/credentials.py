"""Settings end up in the files of a run, which are handed on: none may hold a secret."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from dash_exp.core.errors import UserError

IN_ADDRESS = re.compile(r"://[^/\s:@]*:[^/\s@]+@")  # https://user:password@host
SECRET_NAME = re.compile(r"(^|_)(KEY|APIKEY|TOKEN|SECRET|PASSWORD|PASSWD|PASS|CREDENTIALS?)$")
SHORTEST = 12  # characters of a value that is taken for a secret; a shorter one may stand in a setting by chance


def refuse_settings(settings: object) -> None:
    """`refuse` for every text in nested settings; and for variables that are to be set to a secret (`hydra.job.env_set`)."""
    leaves = list(_leaves(settings))
    refuse((key, value) for key, value in leaves if isinstance(value, str))
    for key, value in leaves:
        if ".env_set." in key and SECRET_NAME.search(key.rpartition(".")[2].upper()) and value:
            raise UserError(key, "would be written into the run folder", "Set it in the shell instead")


def _leaves(tree: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Every single value with its dotted key."""
    if isinstance(tree, dict | list):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, tree


def refuse(texts: Iterable[tuple[str, str]]) -> None:
    """Raise UserError for the first of (where, text) that holds a password or a secret of the environment. It is not shown."""
    named = {v: k for k, v in os.environ.items() if SECRET_NAME.search(k.upper())}
    secrets = {v: k for v, k in named.items() if len(v) >= SHORTEST and not os.path.exists(v)}  # a key file's name is none
    for where, text in texts:
        if IN_ADDRESS.search(text):
            raise UserError(where, "holds a password, and every setting is written into the run folder", "Leave it out")
        for secret, name in secrets.items():
            if secret in text:
                raise UserError(
                    where, f"holds the value of {name}, and every setting is written into the run folder", "Leave it out"
                )
