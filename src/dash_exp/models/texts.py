"""From text to token ids and back: prompts, solutions, completions, and what a teacher or a reward model reads."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dash_exp.core.types import Completion

Ids = Sequence[int]

TAG = re.compile(r"<[a-zA-Z_]+>")


def encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], whole: bool = False) -> list[list[int]]:
    """The token ids of texts, with what the tokenizer puts before a text (BOS), once where the text begins with it already.

    What it puts behind a text (EOS) is left out, because a model continues the text; `whole`: it is added, once.
    """
    front, back = frame(tokenizer)
    bare = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False).input_ids
    return [joined(joined(front, ids), back if whole else []) for ids in bare]


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and behind every text."""
    text = "1 + 1"
    bare, all_ids = tokenizer(text, add_special_tokens=False).input_ids, tokenizer(text).input_ids
    starts = (i for i in range(len(all_ids)) if all_ids[i : i + len(bare)] == bare)
    start = next(starts, 0)
    return all_ids[:start], all_ids[start + len(bare) :]


def joined(first: Ids, second: Ids) -> list[int]:
    """Both, with what ends the first and begins the second only once. `[1, 2], [2, 3] -> [1, 2, 3]`"""
    shared = next(n for n in range(min(len(first), len(second)), -1, -1) if list(first[len(first) - n :]) == list(second[:n]))
    return [*first, *second[shared:]]


def without_end(ids: Ids, eos_id: int) -> list[int]:
    """The ids without EOS behind them."""
    end = next((n for n in range(len(ids), 0, -1) if ids[n - 1] != eos_id), 0)
    return list(ids[:end])


def continuation(tokenizer: PreTrainedTokenizerBase, text: str, complete: bool = True, end: int | None = None) -> list[int]:
    """The ids of a text that stands behind a prompt: nothing before it, and where it is `complete` the token `end` once behind
    it, by default EOS.
    """
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return joined(ids, [tokenizer.eos_token_id if end is None else end]) if complete else list(ids)


def behind(text: str, more: str, separator: str) -> str:
    """What stands behind a text, as a solution behind its prompt: with the separator before it, unless nothing or white space
    divides the two already.

    The prompt stays as it is, so that a policy has the same prompts in SFT, in RL and in evaluation.
    """
    return more if not text or text[-1].isspace() or more[:1].isspace() else separator + more


def without_tag(text: str, before: str) -> str | None:
    """The rest of a text that begins with the tag that `before` ends with, as `<think>`; None where there is no such tag."""
    text = text.lstrip()
    tag = TAG.match(text)
    if not tag or not before.rstrip().endswith(tag[0]):
        return None
    rest = text.removeprefix(tag[0])
    return rest.lstrip() if before[-1].isspace() else rest


def decoded(tokenizer: PreTrainedTokenizerBase, completions: Sequence[Completion]) -> list[str]:
    """Each completion as text, without padding, BOS, EOS, and the token that ended it. A stop string that ended it stays.

    Other special tokens stay: where `<think>` is one, a reward has to see it. No space is removed before punctuation.
    """
    unsaid = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    written = [(c.ids if c.truncated or c.stopped else c.ids[:-1]).tolist() for c in completions]
    said = [[i for i in ids if i not in unsaid] for ids in written]
    return [str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)) for ids in said]
