"""A search with Optuna (`hydra/sweeper=optuna`): the sweeper of hydra-optuna-sweeper, whose trials may fail.

It is in this package because Hydra finds plugins only here.
"""

from __future__ import annotations

from dash_exp.core.errors import UserError
from dash_exp.core.words import error_line

try:
    from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
except ImportError:  # it is not installed, so that there is no such option
    OptunaSweeper = object  # type: ignore[assignment, misc]


class Search(OptunaSweeper):
    """A trial that fails is told to Optuna as failed: it counts as one of the trials, and nothing is learned from it.

    A search none of whose trials came to its end returns, so that the ledger lists them as it lists some of them. What Optuna
    and its data base say of their settings (an interval, the storage) is one message.
    """

    def sweep(self, arguments: list[str]) -> None:
        from optuna.samplers import GridSampler

        # It would stop the study after the last trial, which only Optuna's own loop allows. The sweeper counts for itself.
        GridSampler.after_trial = lambda *_: None  # type: ignore[method-assign]
        try:
            super().sweep(arguments)
        except Exception as error:
            of_optuna = type(error).__module__.partition(".")[0] in ("optuna", "sqlalchemy")
            if not (of_optuna or isinstance(error, ValueError | AssertionError | ImportError)):
                raise
            if "No trials are completed yet" not in str(error):
                wrong = error_line(error).rstrip(".")
                raise UserError("the search", wrong, "Correct hydra.sweeper, or the values that are searched") from error
