"""Problems as token ids, as a model sees them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem, Prompt
from dash_exp.models import texts


def tokenized(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    max_tokens: int,
    where: str,
    limit: int | None = None,
) -> list[Prompt]:
    """The problems with their token ids, those of more than `limit` tokens left out.

    Raises UserError where nothing is left, and where a prompt has no token, and where a prompt and a completion
    of `max_tokens` exceed the model's `context`.
    """
    if not problems:
        raise UserError(where, "has no problem left, test problems taken out", "Give problems that are not in the tests")
    ids = texts.encoded(tokenizer, [p.prompt for p in problems])
    prompts = [Prompt(p, tuple(i)) for p, i in zip(problems, ids, strict=True)]
    empty = next((p for p in prompts if not p.ids), None)
    if empty is not None:
        raise UserError(f"{where}, problem {empty.problem.id}", "its prompt has no token of this tokenizer", "Give a text")
    kept = [p for p in prompts if limit is None or len(p.ids) <= limit]
    longest = max(kept, key=lambda p: len(p.ids), default=None)
    if longest is None:
        raise UserError(f"data.max_prompt_tokens={limit}", f"leaves no problem of {where}", "Raise it")
    room = context - max_tokens
    if len(longest.ids) > room:
        raise UserError(
            f"{where}, problem {longest.problem.id}",
            f"its prompt of {len(longest.ids)} tokens and a completion of up to {max_tokens} do not fit "
            f"the model's context of {context} tokens",
            "Lower rollout.max_response_tokens"
            + (f", or leave longer problems out with data.max_prompt_tokens={room}" if room > 0 else ""),
        )
    return kept
