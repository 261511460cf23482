"""Stop strings: where a completion ends, and what it says."""

from functools import partial

import numpy as np
import pytest
import torch
from special_tokens import made
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dash_exp.core.types import Problem, Prompt
from dash_exp.models.texts import decoded
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.hf import HFSampler
from dash_exp.sampling.stopping import StopStrings


def words():
    """A tokenizer of SentencePiece's kind: white space is a part of the next token, and is written before it."""
    core = Tokenizer(models.WordLevel({"▁a": 0, "▁b.": 1, "c": 2, "<eos>": 3}, unk_token=None))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def end(tokenizer, ids, stop):
    """The number of tokens after which the completion ends; None where it does not."""
    stops = StopStrings(tokenizer, stop)
    ends = (n for n in range(1, len(ids) + 1) if stops.completed(torch.tensor([ids[:n]])[:, -stops.window :])[0])
    return next(ends, None)


@pytest.mark.parametrize(
    ("text", "stop", "said"),
    [
        ("2</answer> and", ["</answer>"], "2</answer>"),
        ("a\n\nQuestion: b", ["Question:", "\n\n"], "a\n\n"),
        ("a\n\nb", ["c"], None),
        ("é is 2é", ["2é"], "é is 2é"),  # two tokens, of which the first is no character
        ("日本。x", ["本。"], "日本。"),
        ("x<think>y", ["<think>"], "x<think>"),  # a special token
        ("aaaaaaaaaab", ["ab"], "aaaaaaaaaab"),
        ("x" * 200 + "END", ["xxEND"], "x" * 200 + "END"),
        ("EEND", ["END"], "EEND"),
    ],
)
def test_a_completion_ends_with_the_token_that_completes_a_text(text, stop, said):
    tokenizer = made()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    n = end(tokenizer, ids, stop)
    assert (None if n is None else tokenizer.decode(ids[:n])) == said


def test_a_token_that_says_more_than_the_end():
    assert end(words(), [0, 1, 2], ["b"]) == 2  # in "a b.c" the token is "b."
    assert end(words(), [0, 2, 0, 2], ["c "]) == 3  # the blank is written with the next word


def test_only_last_tokens_are_decoded_and_only_where_one_can_end_a_text(monkeypatch):
    tokenizer = made()
    ids_BT = torch.tensor([tokenizer(text).input_ids for text in ("a" * 50, "a" * 49 + ">", "a" * 47 + "/a>")])
    lengths = []
    decode = type(tokenizer).decode
    monkeypatch.setattr(
        type(tokenizer), "decode", lambda self, ids, **more: lengths.append(len(ids)) or decode(self, ids, **more)
    )
    stops = StopStrings(tokenizer, ["/a>"])
    assert stops.completed(ids_BT).tolist() == [False, False, True]
    assert sorted(lengths) == [1, 1, 7, 7]


# --- sampling ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sample(policy, tokenizer):
    def run(prompts, group, sampling, max_sequences=64):
        return HFSampler(policy, tokenizer, max_sequences).sample(prompts, group, sampling, (0, 3))

    return run


STOP = ("a", "7", "k=")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_with_stop_strings_completions_are_those_without_up_to_there(sample, tokenizer, prompts, temperature):
    """By the same noise, whatever else is in the batch."""
    whole = sample(prompts, 20, Sampling(30, temperature))
    stopped = sample(prompts, 20, Sampling(30, temperature, stop=STOP), max_sequences=7)
    kinds = set()
    for before, after in zip(whole, stopped, strict=True):
        text = tokenizer.decode(after.ids)
        ends = [end(tokenizer, before.ids.tolist(), [stop]) for stop in STOP]
        n = min([len(before.ids), *(e for e in ends if e is not None)])
        assert np.array_equal(after.ids, before.ids[:n])
        assert torch.allclose(torch.tensor(after.logprobs), torch.tensor(before.logprobs[:n]))
        ended = before.ids[n - 1] == tokenizer.eos_token_id
        assert after.stopped == (n in ends and not ended)
        assert after.truncated == (n == 30 and not ended and not after.stopped)
        assert any(stop in text for stop in STOP) == after.stopped
        kinds.add((after.truncated, after.stopped))
    assert len(kinds) == 3 or temperature == 0


def test_the_last_token_allowed_may_complete_a_text(sample, tokenizer, prompts):
    """And where it is the end of the text, and a special token, it is no stop string."""
    free = sample(prompts, 20, Sampling(5))
    last = next(text for text in (tokenizer.decode(c.ids[-1:]) for c in free) if text.isalnum())
    found = sample(prompts, 20, Sampling(5, stop=(last, "<eos>")))
    assert any(len(c.ids) == 5 and c.stopped and not c.truncated for c in found)
    assert not any(c.stopped or c.truncated for c in found if c.ids[-1] == tokenizer.eos_token_id)
    assert any(c.ids[-1] == tokenizer.eos_token_id for c in found)
    assert decoded(tokenizer, [c for c in found if c.stopped])[0].endswith(last)


def test_a_text_of_the_prompt_does_not_end_a_completion(sample, tokenizer):
    prompt = Prompt(Problem("p", "3+4=", "7"), tuple(tokenizer("3+4=").input_ids))
    decode = partial(tokenizer.decode, skip_special_tokens=False)
    (free,) = sample([prompt], 1, Sampling(12, 0.0))
    (found,) = sample([prompt], 1, Sampling(12, 0.0, stop=("=" + decode(free.ids[:1]),)))
    assert np.array_equal(found.ids, free.ids)
