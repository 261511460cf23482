"""What the tests share: a very small random policy, the character tokenizer, and runs of the real program."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import forked
import needs
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig
from skips import (  # noqa: F401  hooks of pytest
    pytest_addoption,
    pytest_itemcollected,
    pytest_make_collect_report,
    pytest_runtest_makereport,
    pytest_terminal_summary,
)
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

import dash_exp.commands.cli  # noqa: F401  registers the resolvers of the configuration
from dash_exp.core.types import Problem, Prompt
from dash_exp.models import loading

# A script that starts the tests in the background has Ctrl-C ignored, and so would every program that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
TRAIN = str(ROOT / "train.py")
NANO = {
    "model_type": "qwen2",
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.3,  # far from uniform, so that mistakes show
}
needs_vllm = pytest.mark.needs("vllm")


# The files that take longest, longest first. They are run first: a file has one of the two processes to itself, so one of these
# at the end would leave the other process idle.
LONGEST = ["clusters", "vllm_server", "faults", "sweep", "snapshot", "vllm", "ranks", "adapter", "hostile", "sandbox"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def bubblewrap() -> None:
    """For tests that need bubblewrap: they are skipped where it cannot be used."""
    needs.require("bubblewrap")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return loading.load_tokenizer(str(loading.ASSETS / "tiny"))


@pytest.fixture
def policy() -> PreTrainedModel:
    torch.manual_seed(0)
    return loading.load_policy("", architecture=NANO)


@pytest.fixture(scope="session")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    texts = ["3+4*2=", "1+1=", "9 minus 8 is", "7*7*7*7="]
    return [Prompt(Problem(t, t, "1", "A:1"), tuple(tokenizer(t).input_ids)) for t in texts]


def save_scorer(folder: Path, chat_template: str | None = None, **changes: object) -> Path:
    """A reward model of random weights with the tokenizer of characters, as a Transformers folder."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(**(NANO | {"num_labels": 1} | changes))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer = loading.load_tokenizer(str(loading.ASSETS / "tiny"))
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


@cache
def chosen(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def composed(*overrides: str) -> DictConfig:
    """The configuration with these overrides. Files are read once for each choice of groups; other overrides change a copy."""
    groups, values = [], []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        name = override.key_or_group
        is_value = override.package is None and not (CONF / name).is_dir() and not override.is_sweep_override()
        (values if is_value and not name.startswith("hydra") else groups).append(override)
    cfg = copy.deepcopy(chosen(*(str(override.input_line) for override in groups)))
    ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    return cfg


def sweep_settings(*overrides: str) -> DictConfig:
    """The configuration of `python train.py -m ...`, with Hydra's own settings."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        return hydra.compose_config("config", list(overrides), RunMode.MULTIRUN)


def environment(home: Path) -> dict[str, str]:
    """The variables of a user who has logged in nowhere. What vLLM once found out about the model's class is kept."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA"))}
    cache = {"VLLM_CACHE_ROOT": str(Path.home() / ".cache" / "vllm")}
    return cache | mine | {"HOME": str(home), "NETRC": str(home / "netrc"), "HF_HUB_OFFLINE": "1"}


def program(
    folder: Path, name: str, *arguments: str, env: dict[str, str] | None = None, is_forked: bool = True
) -> subprocess.CompletedProcess[str]:
    """`python NAME ...`, or with `-m`, in this folder: forked from a process that has all imported, or as a user runs it."""
    variables = environment(folder) | (env or {})
    if not is_forked:
        command = [sys.executable, *([] if name.endswith(".py") else ["-m"]), name, *arguments]
        return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=240)
    said = Path(tempfile.mkdtemp(prefix="said-", dir=folder.parent))
    files = said / "output", said / "errors"
    with forked.Program(name, arguments, folder, variables, *files) as started:
        status = started.wait(240)
    return subprocess.CompletedProcess(arguments, status, *(file.read_text() for file in files))


Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """`python train.py ...` in a folder of the test's own."""
    return partial(program, tmp_path, TRAIN)


# A run of the real program in some seconds: the shipped policy, few and short completions, no tracker.
SMALL = [
    "logger=csv",
    "steps=2",
    "batch.prompts=8",
    "batch.group_size=4",
    "rollout.max_response_tokens=40",
    "data.train.size=64",
    "data.tests.in_dist.size=16",
    "data.tests.out_dist.size=16",
    "name=small",
    "resume_every=1",  # the default depends on how long a snapshot takes
]

# A policy of random weights that takes no time, in place of the shipped one: with `model=tiny_random`.
NANO_MODEL = ["model.architecture.hidden_size=64", "model.architecture.intermediate_size=64"]
NANO_MODEL += ["model.architecture.num_hidden_layers=2"]

# A policy of random weights that writes some letters, half of which are rewarded: there is something to learn in no time.
LETTERS = [*SMALL, "model=tiny_random", *NANO_MODEL, "+model.architecture.initializer_range=0.3"]
LETTERS += ["rollout.max_response_tokens=8", "reward=format", "reward.pattern='[^a-m]*'"]
