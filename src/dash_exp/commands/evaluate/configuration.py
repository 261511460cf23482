"""The settings of train.py by which a run or a model is evaluated."""

from __future__ import annotations

from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dash_exp.commands import cli
from dash_exp.commands.evaluate.command import Command
from dash_exp.commands.sweep import server_nodes
from dash_exp.core.errors import UserError
from dash_exp.core.words import error_line
from dash_exp.models import gguf
from dash_exp.settings import renamed
from dash_exp.settings.validate import validate

# The sections of a run's settings that the choice of a group on the command line replaces; data chooses its reward.
SECTIONS = {
    "data": ("data", "reward"),
    "reward": ("reward",),
    "rollout": ("rollout",),
    "model": ("model",),
    "prompt": ("prompt",),
    "trainer": ("trainer",),
    "experiment": ("data", "reward", "prompt", "rollout", "model", "trainer", "eval"),
}


def configured(command: Command) -> DictConfig:
    """The settings for the target, with its `model.path`. They are checked, and nothing is loaded."""
    for override in command.overrides:
        if override.startswith(("eval.n=", "eval.k=", "eval.temperature=", "eval.top_p=")):
            raise UserError(override, "is a setting for training", f"Write {override.removeprefix('eval.')}")
        if override.startswith(("model.path=", "model.architecture=")):
            raise UserError(override, f"the model to evaluate is {command.target}", "Leave it out, or name another model first")
    target = Path(command.target).expanduser()
    if is_run(target):
        cfg = changed(completed(target), target, command.overrides)
        path, own_tokenizer = checkpoint_of(target, command.checkpoint or "last", cfg)
    else:
        if command.checkpoint:
            raise UserError(f"checkpoint={command.checkpoint}", f"{command.target} is not a run folder", "Leave it out")
        _check_model(command.target)
        cfg = cli.composed(command.overrides)
        path, own_tokenizer = str(target) if target.is_dir() else command.target, True
        if not any(o.startswith("model.instruct=") for o in command.overrides):
            cfg.model.instruct = "auto"  # the file of conf/model describes another model
    if own_tokenizer and not any(o.startswith("model.tokenizer=") for o in command.overrides):
        cfg.model.tokenizer = path
    cfg.model.path, cfg.model.architecture = path, None
    if "adapter" in cfg.model:  # a run of an earlier version does not have it
        cfg.model.adapter = None  # a trained one is merged into its base
    validate(cfg, earlier=is_run(target))
    server_nodes.refuse(cfg, "this is an evaluation", "Leave it out, and start servers: python -m dash_exp.serve")
    return cfg


def completed(folder: Path) -> DictConfig:
    """The settings of a run, with today's defaults for those that a run of an earlier version does not have."""
    cfg = stored(folder)
    if "rollout" in cfg:
        cfg.rollout = with_today(cfg.rollout, cli.composed().rollout)
        if cfg.rollout.sampler.get("server_nodes"):  # of its Slurm job, which has ended
            cfg.rollout.sampler.update({"server_nodes": 0, "gpus_per_server": 1})
    if "prompt" not in cfg:  # as such runs asked
        cfg.prompt = OmegaConf.to_container(cli.composed(["prompt=bare"]).prompt, resolve=True)
    if "select" not in cfg:
        cfg.select = OmegaConf.to_container(cli.composed().select)
    return cfg


def with_today(section: DictConfig, today: DictConfig) -> DictConfig:
    """A section of a run's settings, with the defaults of `today` for what it does not have."""
    of_today = OmegaConf.create(OmegaConf.to_container(today))  # a new one: `today` takes no other names
    merged = OmegaConf.merge(of_today, section)
    assert isinstance(merged, DictConfig)
    return merged


def changed(cfg: DictConfig, folder: Path, overrides: list[str]) -> DictConfig:
    """The settings of the run in a folder, changed by the command line."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    groups = [o for o in parsed if (cli.conf_folder() / o.key_or_group).is_dir()]
    values = [o for o in parsed if o not in groups]
    _check_values(values, folder, cfg, with_data="data" in {g.key_or_group for g in groups})
    _choose(groups, cfg)
    OmegaConf.set_struct(cfg, True)
    ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    return cfg


def stored(folder: Path) -> DictConfig:
    """The configuration in a run folder, with today's names of parts.

    Hydra keeps it with its references (`data.tests.in_dist.path: ${data.path}`) in .hydra. In config.yaml they are resolved, so
    a change of a value there would not change the values that referred to it.
    """
    file = _with_references(folder) if _with_references(folder).is_file() else folder / "config.yaml"
    try:
        cfg = OmegaConf.create(renamed.in_text(file.read_text(encoding="utf-8")))
    except (ValueError, YAMLError, OmegaConfBaseException) as error:
        wrong = f"is not a file of settings in UTF-8 ({error_line(error)})"
        raise UserError(str(file), wrong, "Copy it from the run again, or name its checkpoint: RUN/checkpoints/last") from error
    if not isinstance(cfg, DictConfig) or not isinstance(cfg.get("model"), DictConfig):
        raise UserError(str(file), "is not the configuration of a run", "Name a run folder, or a Transformers folder")
    return cfg


def _with_references(folder: Path) -> Path:
    return folder / ".hydra" / "config.yaml"


def _check_values(values: list[Override], folder: Path, cfg: DictConfig, with_data: bool) -> None:
    """Raise UserError for overrides of single settings that cannot be applied to the stored configuration."""
    for override in values:
        if override.is_sweep_override():
            raise UserError(str(override.input_line), "has several values", "Run one evaluation for each")
        if override.key_or_group.startswith("data.") and not with_data and not _with_references(folder).is_file():
            raise UserError(
                str(override.input_line),
                f"{_with_references(folder)} is missing, so it is not known what depends on this value",
                f"Choose the data set as well: data={OmegaConf.select(cfg, 'data.name')}",
            )


def _choose(groups: list[Override], cfg: DictConfig) -> None:
    """Replace sections of `cfg` by those that the command line chooses."""
    chosen = cli.composed([str(o.input_line) for o in groups])
    for section in [s for group in groups if not group.package for s in SECTIONS.get(group.key_or_group, ())]:
        cfg[section] = OmegaConf.to_container(chosen[section])
    for group in groups:
        if group.package and group.key_or_group in ("test", "reward"):  # of a test set: +test@data.tests.NAME=OPTION
            part = OmegaConf.select(chosen, group.package)
            OmegaConf.update(cfg, group.package, part, merge=False, force_add=True)
        elif group.key_or_group not in SECTIONS:
            raise UserError(str(group.input_line), "has no effect here", "Leave it out")


def is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def checkpoint_of(run: Path, which: str, cfg: DictConfig) -> tuple[str, bool]:
    """The model folder of a run's checkpoint, and whether it also holds the tokenizer."""
    if which == "base":
        if cfg.model.architecture:
            raise UserError("checkpoint=base", f"{run} started from random weights, which were not saved", "Use last or best")
        return str(cfg.model.path), False
    folder = run / "checkpoints" / which
    if not _is_model(folder):
        there = ", ".join(sorted(p.name for p in (run / "checkpoints").glob("*/") if _is_model(p)))
        raise UserError(
            str(run),
            f"has no checkpoint {which} (there: {there or 'none'})",
            f"Use checkpoint={there.split(', ')[0]}" if there else "Use a run that has ended and has checkpoints=[last]",
        )
    return str(folder), True


def _check_model(target: str) -> None:
    """A folder must hold a model, and what can only be a path must exist. Anything else is a hub name."""
    folder = Path(target).expanduser()
    if gguf.is_named(target):
        gguf.check(target, target)
    elif folder.is_dir():
        if not _is_model(folder):
            raise UserError(
                target, "is neither a run folder (config.yaml) nor a Transformers folder (config.json)", "Name another"
            )
    elif folder.exists() or target.startswith((".", "/", "~")) or target.count("/") > 1:
        raise UserError(target, "there is no such folder", "Name a run folder, a Transformers folder or a hub name")


def _is_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("config.json", "adapter_config.json"))
