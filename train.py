"""The entry point: `python train.py algo=dash kl=0.04`, or `-m algo=grpo,dash kl=0,0.04` for a sweep."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dash_exp import cli
from dash_exp.sweep import finished
from dash_exp.validate import validate


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    validate(cfg)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if not finished(run_dir, cfg):
        from dash_exp.run import run  # torch and the rest are loaded when the configuration has been found good

        run(cfg, run_dir, in_sweep=HydraConfig.get().mode == RunMode.MULTIRUN)


if __name__ == "__main__":
    cli.launch(main)
