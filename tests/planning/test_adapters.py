import pytest
from conftest import NANO

from dash_exp.core.errors import UserError
from dash_exp.models import loading
from dash_exp.planning import adapters


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("all-linear", 7),
        (["q_proj", "v_proj"], 2),
        (["self_attn.q_proj"], 1),
        ([r"layers.0.self_attn.q_proj"], 0.5),
        (r".*\.(q|k)_proj", 2),
    ],
)
def test_layers_are_named_as_peft_takes_them(targets, layers):
    policy = loading.load_policy("", architecture=NANO)
    assert len(adapters.add_adapters(policy, 2, targets)) == 2 * 2 * layers  # two matrices, in two blocks
    peft = pytest.importorskip("peft")
    theirs = loading.load_policy("", architecture=NANO)
    theirs.add_adapter(peft.LoraConfig(r=2, target_modules=targets))
    assert sum("lora_" in name for name, _ in theirs.named_parameters()) == 2 * 2 * layers


def test_layers_of_gpt2_have_their_weights_the_other_way_round():
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64}
    shapes = [list(p.shape) for p in adapters.add_adapters(loading.load_policy("", architecture=gpt2), 2, ["c_attn"])]
    assert shapes == [[2, 32], [96, 2]]  # from 32 numbers to those of query, key and value


@pytest.mark.parametrize("targets", [["proj"], "q_proj", "("])
def test_layers_that_are_not_there_are_refused(targets):
    with pytest.raises(UserError, match=r"model\.lora\.target_modules"):
        adapters.add_adapters(loading.load_policy("", architecture=NANO), 2, targets)
