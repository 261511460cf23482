"""The entry point: `python train.py algo=dash kl=0.04`, or `-m algo=grpo,dash kl=0,0.04` for a sweep.

With `plan=true` the callback `sweep.ledger.Ledger` prints the plan and exits, before `main` is called.
"""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dash_exp.commands import cli
from dash_exp.commands.sweep.finished import finished
from dash_exp.commands.sweep.matched import check_alone
from dash_exp.commands.sweep.run_cell import run_cell
from dash_exp.core import process
from dash_exp.settings.validate import validate


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_cell(cfg, run_dir, run)
    validate(cfg)
    check_alone(cfg)
    if finished(run_dir, cfg):
        print(f"done before, skipped: {run_dir} (remove the folder to run it again)")
    else:
        run(cfg, run_dir)
    return None


def run(cfg: DictConfig, run_dir: Path, in_sweep: bool = False) -> dict[str, Any]:
    with process.importing():
        from dash_exp.commands.run import run  # loads torch and the rest, after the configuration was found good

    return run(cfg, run_dir, in_sweep=in_sweep)


def follow(*run: Any) -> None:
    """What the other ranks do."""
    from dash_exp.commands.run import follow

    follow(*run)


if __name__ == "__main__":
    cli.launch(main, follow)
