import pytest
from conftest import composed

from dash_exp.commands.build import at_a_time


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("eval.prompts=24", 24),
        ("eval.prompts=24 rollout=vllm", None),  # its engine keeps its batch full: all at once
        ("eval.prompts=24 rollout=vllm_server", None),
        ("eval.prompts=24 rollout.sampler._target_=rank_parts.CopySampler", 24),  # one that does not say so
    ],
)
def test_how_much_evaluation_asks_a_sampler_for(words, expected):
    assert at_a_time(composed(*words.split())) == expected
