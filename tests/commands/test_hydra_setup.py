"""What the configuration calls, and what Hydra no longer prints."""

import pytest
import torch
from conftest import SMALL, TRAIN, composed, program

from dash_exp.commands.hydra_setup import cell_name
from dash_exp.commands.sizes import quick_words, slow_words

WRONG = "clip_norm=0: is not a number above 0: at 0 no weight would change. Write a number above 0."
SEARCH = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "optimizer.lr=interval(1e-5,1e-2)"]
FAILS_LATER = "rollout.max_response_tokens=5000"  # found when the model is there


def test_cell_names_are_folder_names():
    assert cell_name("algo=dash,kl.coef=0") == "algo=dash,kl.coef=0"
    assert cell_name("data.path=../x/y") == "data.path=.._x_y"
    assert cell_name("") == "cell"
    first, second = cell_name("a" * 300), cell_name("a" * 299 + "b")
    assert len(first) <= 150
    assert first != second


@pytest.mark.parametrize(("trainer", "expected"), [("cpu", ("float32", 2048)), ("gpu", ("bfloat16", 32768))])
def test_a_small_model_is_computed_as_its_device_is_quick(trainer, expected):
    model = composed("model=smollm2-135m", f"trainer={trainer}").model
    assert (model.compute_dtype, model.micro_tokens) == expected


X86 = {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize(
    ("overrides", "has", "setting"),
    [
        ([], X86, None),
        (["model.compute_dtype=bfloat16"], X86, "model.compute_dtype=bfloat16"),
        (["model.dtype=bfloat16"], X86, "model.dtype=bfloat16"),
        (["model.compute_dtype=bfloat16"], X86 | {"avx512_bf16": True}, None),
        (["model.compute_dtype=bfloat16"], X86 | {"amx_bf16": True}, None),
        (["model.compute_dtype=bfloat16"], {"architecture": "aarch64"}, None),
        (["model.compute_dtype=bfloat16", "trainer=gpu"], X86, None),
    ],
)
def test_a_cpu_without_instructions_for_16_bits_is_told(overrides, has, setting, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    told = slow_words(composed(*overrides))
    assert (told is None) == (setting is None)
    assert setting is None or told.startswith(f"{setting} is slow on this CPU")


@pytest.mark.parametrize(
    ("overrides", "has", "parameters", "says"),
    [
        ([], X86 | {"avx512_bf16": True}, 10**8, True),
        ([], X86 | {"amx_bf16": True}, 10**8, True),
        ([], X86 | {"avx512_bf16": True}, 10**6, False),  # of which the matrices are too small
        ([], X86, 10**8, False),
        ([], {"architecture": "aarch64"}, 10**8, False),
        (["model.compute_dtype=bfloat16"], X86 | {"avx512_bf16": True}, 10**8, False),
        (["trainer=gpu"], X86 | {"avx512_bf16": True}, 10**8, False),
    ],
)
def test_a_cpu_with_instructions_for_16_bits_is_told(overrides, has, parameters, says, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert (quick_words(composed(*overrides), parameters) is not None) == says


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*SMALL, "clip_norm=0"], WRONG),
        ([*SMALL, FAILS_LATER], "do not fit"),
        (["-m", *SMALL, "seed=0,1", "clip_norm=0"], f"seed=0,clip_norm=0: {WRONG}"),
    ],
    ids=["a setting", "a run", "a sweep"],
)
def test_an_error_is_one_message(tmp_path, arguments, says):
    done = program(tmp_path, TRAIN, *arguments, is_forked=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_cell_that_fails_is_in_the_one_message_of_the_sweep(train):
    done = train("-m", *SMALL, FAILS_LATER, "seed=0,1", "hydra.callbacks.ledger.report=null")
    assert done.returncode == 1
    first, *cells = done.stderr.strip().splitlines()
    assert first == "error: 2 of 2 cells are not done; the same command tries them again:"
    assert len(cells) == 2


def test_a_search_ends_with_the_message_of_its_cell(train):
    done = train(*SEARCH, *SMALL, "clip_norm=0")
    assert done.returncode == 1
    *others, error, last = done.stderr.strip().splitlines()
    assert error == "error: 1 of 1 cells are not done; the same command tries them again:"
    assert last.endswith(f"failed, UserError: {WRONG}")
    assert all("Error executing job" not in line and "[I " in line for line in others)  # Optuna's
