"""The training problems and the test sets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from dash_exp.core.errors import UserError
from dash_exp.settings.checks import flags, numbers, shown, texts

SECTIONS = "data data.tests"
TEXTS = "test_path math500_path gsm8k_path subset train_split test_split prompt answer solution id"
OPTIONAL = [f"data.{name}" for name in TEXTS.split()]
OF_LOADERS = "dash_exp.data."  # how their names begin
NEEDED = ("path", "split", "prompt")  # by the loaders
MAY_BE_NULL = ("subset", "answer", "solution", "id", "hub_path", "other_path")
# What a test set brings in addition to the arguments of its loader: the reward that grades it, the limit of its completions.
BROUGHT = re.compile(r"data\.tests\.[^.]+\.(reward|max_response_tokens)")


def response_limit(cfg: DictConfig, where: str) -> tuple[str, int]:
    """The setting that limits completions of the problems at `where`, and its tokens: that of a test set, or else the run's."""
    own = f"{where}.max_response_tokens"
    key = own if BROUGHT.fullmatch(own) and OmegaConf.select(cfg, own) is not None else "rollout.max_response_tokens"
    return key, int(OmegaConf.select(cfg, key))


def longest_response(cfg: DictConfig) -> tuple[str, int]:
    """The largest of these limits, of training and of all test sets."""
    limits = [response_limit(cfg, where) for where in ("data.train", *(f"data.tests.{name}" for name in cfg.data.tests))]
    return max(limits, key=lambda limit: limit[1])


def limits_of_tests(cfg: DictConfig) -> dict[str, int]:
    """Most tokens of a completion, by the name of the test set."""
    return {str(name): response_limit(cfg, f"data.tests.{name}")[1] for name in cfg.data.tests}


def values(cfg: DictConfig) -> None:
    texts(cfg, "data.name data.path")
    texts(cfg, " ".join(key for key in OPTIONAL if OmegaConf.select(cfg, key) is not None))
    _names(cfg, "data.extra")
    _names(cfg, "data.optional")
    numbers(cfg, "data.limit data.max_prompt_tokens", whole=True, least=1, optional=True)
    flags(cfg, "data.train.annotations")
    if cfg.data.get("separator") is not None:
        texts(cfg, "data.separator", lines=True)
    if cfg.data.tests.get("in_dist") is None:
        raise UserError("data.tests.in_dist", "is null", "Give a test set: accuracy and the best checkpoint need it")
    sets = {"data.train": cfg.data.get("train")} | {f"data.tests.{name}": test for name, test in cfg.data.tests.items()}
    for key, value in sets.items():
        if value is not None and not (isinstance(value, DictConfig) and "_target_" in value):
            choose = "choose another data set: data=gsm8k" if key == "data.train" else f"choose one: +test@{key}=gsm8k"
            raise UserError(f"{key}={value}", "is not a data set", f"Write null, or {choose}")
        numbers(cfg, f"{key}.max_response_tokens", whole=True, least=1, optional=True)
        if value is not None and str(value._target_).startswith(OF_LOADERS):
            _of_loader(cfg, key)
    for name, right in {"reward": "reward=NAME", "max_response_tokens": "rollout.max_response_tokens=N"}.items():
        if name in (cfg.data.get("train") or {}):
            raise UserError(f"data.train.{name}", "is not read: training has that of the run", f"Write {right} instead")


def setting(cfg: DictConfig, key: str, argument: str) -> str:
    """The setting that gives an argument of the data set at `key`: `data.path` where it is `${data.path}`, else its own."""
    given: Any = OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=False)
    reference = re.fullmatch(r"\$\{([\w.]+)\}", str(given[argument]))
    return reference[1] if reference else f"{key}.{argument}"


def _of_loader(cfg: DictConfig, key: str) -> None:
    """What the data set at `key` gives its loader."""
    for name in OmegaConf.select(cfg, key):
        where = setting(cfg, key, name)
        if name in NEEDED or (name in MAY_BE_NULL and OmegaConf.select(cfg, where) is not None):
            texts(cfg, where)
        if name in ("extra", "optional"):
            _names(cfg, where)


def _names(cfg: DictConfig, key: str) -> None:
    value = OmegaConf.select(cfg, key, default=[])
    if not isinstance(value, list | ListConfig) or not all(isinstance(name, str) for name in value):
        right = f"Write it in brackets, as in {key}=[level,source]"
        raise UserError(f"{key}={shown(value)}", "is not a list of names", right)


def relations(cfg: DictConfig) -> None:
    _two_files(cfg)
    tests = [(str(name), test) for name, test in cfg.data.tests.items() if test is not None]
    for i, (name, test) in enumerate(tests):
        if "/" in name:
            raise UserError(
                f"data.tests.{name}", "has a / in its name, which separates the parts of a metric's name", "Choose another name"
            )
        same = [other for other, earlier in tests[:i] if earlier == test]
        if same:
            raise UserError(f"data.tests.{name}", f"is the same test set as data.tests.{same[0]}", "Remove one of them")


def _two_files(cfg: DictConfig) -> None:
    """One file for training and test must be divided."""
    path, splits = cfg.data.get("path"), [cfg.data.get("train_split"), cfg.data.get("test_split")]
    one = path is not None and path == cfg.data.get("test_path") and Path(path).expanduser().is_file()
    if one and not all("[" in str(split) for split in splits):
        raise UserError(
            f"data.path={path}",
            "is one file, for training and test",
            "Add data.test_path=FILE, or divide it: \"data.train_split='train[100:]'\" \"data.test_split='train[:100]'\"",
        )
