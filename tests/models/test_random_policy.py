"""Random architectures that do not work, which Transformers makes without a word."""

import pytest
import torch
from conftest import NANO

from dash_exp.core.errors import UserError
from dash_exp.models import loading

BAD = [
    ({"num_attention_heads": 3}, r"^model\.architecture\.num_attention_heads=3: does not divide hidden_size=32\."),
    ({"num_attention_heads": 0}, r"num_attention_heads=0: does not divide hidden_size=32\."),
    ({"num_key_value_heads": 4}, r"^model\.architecture\.num_key_value_heads=4: does not divide num_attention_heads=2\."),
    ({"num_hidden_layers": 0}, r"^model\.architecture\.num_hidden_layers=0: leaves a model without layers\."),
    ({"hiden_size": 64}, r"^model\.architecture\.hiden_size: there is no such setting\. Write hidden_size\."),
    (
        {"hidden_size": "wide"},
        r"describes no model \(Validation error for field 'hidden_size': TypeError: .*expected int",
    ),
    ({"head_dim": 7}, r"^model\.architecture: describes no model \("),
    ({"attention_dropout": 2}, r"^model\.architecture: describes no model \(dropout probability"),
]


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[str(changed) for changed, _ in BAD])
def test_architectures_that_do_not_work(changed, message):
    with pytest.raises(UserError, match=message):
        loading.load_policy("", architecture=NANO | changed)


def test_sizes_are_checked_without_weights_too():
    """For a plan, or a server."""
    with pytest.raises(UserError, match="does not divide hidden_size=32"):
        loading.load_architecture("", NANO | {"num_attention_heads": 3})


def test_a_head_size_of_its_own_makes_the_number_of_heads_free():
    loading.load_policy("", architecture=NANO | {"model_type": "qwen3", "num_attention_heads": 3, "head_dim": 8})


def test_dropout_takes_no_random_numbers_of_the_run():
    def after(rate):
        torch.manual_seed(0)
        loading.load_policy("", architecture=NANO | {"attention_dropout": rate})
        return torch.rand(1)

    assert torch.equal(after(0.0), after(0.5))
