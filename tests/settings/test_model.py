"""Settings of the model and its adapter that are refused."""

from pathlib import Path

import pytest
from conftest import composed
from refusals import assert_each_is_met, assert_refused, refusal, refusal_of

from dash_exp.core.errors import UserError
from dash_exp.settings import model

BAD = [
    ("model.dtype=int8", "model.dtype=int8: is not known"),
    (
        "model.architecture=3",
        "model.architecture=3: is not a section of settings with model_type. Write null, or leave it as in conf/.",
    ),
    (
        "model.path=null",
        "model.path=null: is not a text. Write one line of text; what looks like a number takes quotes, '\"3\"'.",
    ),
    (
        "model.path=[a]",
        "model.path=['a']: is not a text. Write one line of text; what looks like a number takes quotes, '\"3\"'.",
    ),
    ("model.adapter=qlora", "model.adapter=qlora: is not known. Use one of lora"),
    (
        "model.adapter=lora model.lora=null",
        "model.lora=null: must be the settings of an adapter. Give r, alpha, dropout, target_modules, lr, and nothing else.",
    ),
    (
        "model.adapter=lora +model.lora.bias=all",
        "model.lora.bias: there is no such setting",
    ),
    ("model.adapter=lora model.lora.r=0", "model.lora.r=0: is not a whole number of at least 1"),
    (
        "model.adapter=lora model.lora.dropout=1",
        "model.lora.dropout=1: is not a number of at least 0 and below 1: it is a share, and 1 would drop everything.",
    ),
    ("model.adapter=lora model.lora.target_modules=[]", "model.lora.target_modules=[]: names no layers. Write all-linear"),
    (
        "model.adapter=lora model.lora.r=1024 rollout=vllm",
        "model.lora.r=1024: is above vLLM's limit of 512. Lower it, or write rollout.sampler.merge=true.",
    ),
    ("model.adapter=lora rollout=vllm rollout.staleness=1 kl.place=reward", "with an adapter the two are one model"),
    ("model.master_weights=half", "model.master_weights=half: is neither true nor false"),
    ("model.gradient_checkpointing=maybe", "model.gradient_checkpointing=maybe: is neither true nor false"),
    ("model.trust_remote_code=1", "model.trust_remote_code=1: is neither true nor false"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


def no_peft() -> UserError | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        return refusal_of(composed("model.adapter=lora"))


def an_adapter_as_the_model(folder: Path) -> UserError | None:
    (folder / "adapter_config.json").touch()
    return refusal_of(composed("model.adapter=lora", f"model.path={folder}"))


def test_peft_that_is_not_installed():
    assert_refused(no_peft(), "model.adapter=lora: needs PEFT, which is not installed. Run pip install -e '.[lora]'")


def test_an_adapter_on_top_of_an_adapter(tmp_path):
    assert_refused(
        an_adapter_as_the_model(tmp_path), "is an adapter, and a second adapter on top of it would name it as its base"
    )


def test_every_refusal_has_a_case(tmp_path):
    assert_each_is_met(model, [*(refusal(bad) for bad, _ in BAD), no_peft(), an_adapter_as_the_model(tmp_path)])
