"""A search with Optuna: the sweeper of hydra-optuna-sweeper, whose trials may fail.

It is in this package because Hydra finds plugins only here.
"""

from __future__ import annotations

from dash_exp.core.errors import UserError
from dash_exp.core.words import error_line

try:
    from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
except ImportError:  # it is not installed, which sweep.launchers reports
    OptunaSweeper = object


class Search(OptunaSweeper):
    """What Optuna says of its own settings (storage, sampler, an interval) is one message. A search none of whose trials came
    to its end ends as one with some failures: the ledger lists them.
    """

    def sweep(self, arguments: list[str]) -> None:
        try:
            super().sweep(arguments)
        except UserError:
            raise
        except (ValueError, AssertionError, ImportError) as error:
            if "No trials are completed yet" in str(error):
                return
            raise UserError(
                "the search", error_line(error).rstrip("."), "Correct hydra.sweeper, or the searched values"
            ) from error
