"""Tokenizers with the habits of those on the hub: BOS before a text, EOS behind it, both, none."""

import pytest
from special_tokens import BOS, EOS, THINK, UNTHINK, made
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Problem
from dash_exp.data.prompts import tokenized
from dash_exp.models.texts import continuation, decoded, encoded, frame, joined


def written(tokenizer, text):
    (ids,) = encoded(tokenizer, [text])
    return tokenizer.decode(ids)


HABITS = {"none": ("", ""), "bos": ("<bos>", ""), "eos": ("", "<eos>"), "both": ("<bos>", "<eos>")}


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("text", ["1+1=", "<bos>1+1=", " 1+1=", "<think>1+1="])
def test_a_prompt_begins_once_and_does_not_end(habit, text):
    before, behind = HABITS[habit]
    tokenizer = made(before, behind)
    once = text if text.startswith("<bos>") else before + text
    assert written(tokenizer, text) == once
    (prompt,) = tokenized([Problem("p", text, "2")], tokenizer, 64, 8, "data.train")
    assert tokenizer.decode(prompt.ids) == once
    (whole,) = encoded(tokenizer, [text], whole=True)
    assert tokenizer.decode(whole) == once + behind
    (whole,) = encoded(tokenizer, [text + "<eos>"], whole=True)
    assert tokenizer.decode(whole) == f"{once}<eos>"


def test_an_end_that_the_text_itself_has_stays():
    assert written(made("<bos>", "<eos>"), "1<eos>") == "<bos>1<eos>"  # an example before the question


def test_several_tokens_before_a_text():
    tokenizer = made("<think> <bos>", "</think> <eos>")
    assert frame(tokenizer) == ([THINK, BOS], [UNTHINK, EOS])
    assert written(tokenizer, "<bos>1") == written(tokenizer, "1") == "<think><bos>1"


def test_a_tokenizer_whose_bos_is_its_eos():
    tokenizer = made("<eos>", "", bos_token="<eos>")
    assert written(tokenizer, "<eos>1") == written(tokenizer, "1") == "<eos>1"


def test_a_prompt_without_a_token_is_refused():
    core = Tokenizer(models.BPE({"1": 0, "+": 1, "<eos>": 2}, []))  # drops what it does not know
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    with pytest.raises(UserError, match=r"^data\.train, problem p: its prompt has no token of this tokenizer"):
        tokenized([Problem("p", "é", "2")], tokenizer, 64, 8, "data.train")


def test_joined():
    assert joined([1, 2], [2, 3]) == [1, 2, 3]
    assert joined([1, 2], [1, 2, 3]) == [1, 2, 3]
    assert joined([1], [2]) == [1, 2]
    assert joined([], [2]) == [2]
    assert joined([1], []) == [1]


@pytest.mark.parametrize("habit", HABITS)
def test_a_solution_begins_with_itself_and_ends_once(habit):
    tokenizer = made(*HABITS[habit])
    assert tokenizer.decode(continuation(tokenizer, "A:2")) == "A:2<eos>"
    assert tokenizer.decode(continuation(tokenizer, "A:2<eos>")) == "A:2<eos>"
    assert tokenizer.decode(continuation(tokenizer, "A:2", complete=False)) == "A:2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>2 and 2</think>4<eos>", "<think>2 and 2</think>4"),  # tags that are special tokens
        ("<think>4</think><end of turn>", "<think>4</think>"),  # ended by a token of generation_config.json
        ("<bos>a<pad>b<eos>", "ab"),
        ("<end of turn>a<eos>", "<end of turn>a"),
        ("I do n't , you 're . !  x [ 1 ]<eos>", "I do n't , you 're . !  x [ 1 ]"),  # as it was written
        ("    return 1\n<eos>", "    return 1\n"),
        ("<eos>", ""),
    ],
)
def test_of_a_completion_padding_bos_and_the_end_are_left_out(text, said):
    tokenizer = made("<bos>", "<eos>", clean_up_tokenization_spaces=True)
    ids = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    assert decoded(tokenizer, [Completion(ids, None, truncated=False)]) == [said]


def test_a_completion_that_was_cut_off_keeps_its_last_token():
    tokenizer = made()
    assert decoded(tokenizer, [Completion((THINK, 40), None, truncated=True), Completion((THINK,), None, truncated=True)]) == [
        f"<think>{tokenizer.decode([40])}",
        "<think>",
    ]
    assert decoded(tokenizer, []) == []


def test_spaces_stay_with_a_tokenizer_of_words():
    """Transformers removes spaces before punctuation where a tokenizer of this kind was saved with that setting."""
    core = Tokenizer(models.WordLevel({"x": 0, "==": 1, ".": 2, "<eos>": 3}, unk_token=None))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", clean_up_tokenization_spaces=True)
    assert decoded(tokenizer, [Completion((0, 2, 0, 3), None, truncated=False)]) == ["x . x"]
