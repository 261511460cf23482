"""Problems as token ids, as a model sees them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem, Prompt
from dash_exp.data.prompt_form import PromptForm
from dash_exp.rewards.base import Reward, shortened

RUN = "rollout.max_response_tokens"  # the limit of completions where a test set has none of its own

log = logging.getLogger(__name__)


def tokenized(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    max_tokens: int,
    where: str,
    limit: int | None = None,
    form: PromptForm | None = None,
    examples: Sequence[Problem] = (),
    limited_by: str = RUN,
) -> list[Prompt]:
    """The problems with their token ids, those of more than `limit` tokens left out. `form`: how the model is asked, by default
    by the problem's text alone; `examples`: the training problems that it may show.

    Raises UserError where nothing is left, where a prompt has no token, and where a prompt and a completion of `max_tokens`,
    which the setting `limited_by` says, exceed the model's `context`.
    """
    if not problems:
        raise UserError(where, "has no problem left, test problems taken out", "Give problems that are not in the tests")
    form = form or PromptForm()
    several = sum(len(p.messages) > 1 for p in problems)
    if several and not form.chat:
        said = "prompts have several messages, of which the model gets only the user's last one"
        chat = "prompt=chat gives it all, if the tokenizer has a chat template"
        log.warning("%s: %d of %d %s; %s", where, several, len(problems), said, chat)
    prompts = form.prompts(problems, tokenizer, examples)
    empty = next((p for p in prompts if not p.ids), None)
    if empty is not None:
        raise UserError(f"{where}, problem {empty.problem.id}", "its prompt has no token of this tokenizer", "Give a text")
    kept = [p for p in prompts if limit is None or len(p.ids) <= limit]
    longest = max(kept, key=lambda p: len(p.ids), default=None)
    if longest is None:
        shortest = min(len(p.ids) for p in prompts)
        wrong = f"leaves no problem of {where}: the shortest prompt has {shortest} tokens, with template and examples"
        raise UserError(f"data.max_prompt_tokens={limit}", wrong, "Raise it")
    if len(kept) < len(prompts):
        n = len(prompts) - len(kept)
        log.warning(
            "%s: %d of %d prompts have more than data.max_prompt_tokens=%d tokens and are left out",
            where,
            n,
            len(prompts),
            limit,
        )
    room = context - max_tokens
    if len(longest.ids) > room:
        raise UserError(
            f"{where}, problem {longest.problem.id}",
            f"its prompt of {len(longest.ids)} tokens and a completion of up to {max_tokens} do not fit "
            f"the model's context of {context} tokens",
            f"Lower {limited_by}" + (f", or leave longer problems out with data.max_prompt_tokens={room}" if room > 0 else ""),
        )
    return kept


def check_answers(
    reward: Reward,
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    where: str,
    limited_by: str = RUN,
) -> None:
    """Where the reward reads answers: UserError if all of them have more tokens than a completion, one line if some have.

    `where`: the setting that the problems are from. `limited_by`: the setting that says `max_tokens`.
    """
    if getattr(reward, "grades", None) != "answers":
        return
    ids = tokenizer([p.answer for p in problems], add_special_tokens=False, return_attention_mask=False).input_ids
    long = [p for p, answer in zip(problems, ids, strict=True) if len(answer) > max_tokens]
    if not long:
        return
    said = f"have more tokens than {limited_by}={max_tokens}, as {shortened(long[0].answer)!r} of {long[0].id}"
    if len(long) == len(problems):
        raise UserError(where, f"all answers {said}", "Raise it, or name the field with the answer alone (data.answer)")
    log.warning("%s: %d of %d answers %s", where, len(long), len(problems), said)
