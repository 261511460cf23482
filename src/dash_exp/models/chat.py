"""Conversations as text, by the chat template of a tokenizer: up to the assistant's answer, or with it.

The template writes all special tokens, as its authors intend: nothing is added, so there is one BOS where it writes one.
"""

from __future__ import annotations

import datetime
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from dash_exp.core.errors import UserError
from dash_exp.core.words import error_line
from dash_exp.models import texts

Turn = tuple[str, str]  # role and text

PROBE, ANSWER = "1 + 1", "an answer"
TODAY = datetime.date(2024, 7, 26)  # for templates that write the day: the same in all runs, whenever they are started
TAG_AT_END = re.compile(rf"({texts.TAG.pattern})\s*\Z")

log = logging.getLogger(__name__)


class ChatTemplate:
    """The chat template of a tokenizer. `options`: what it can be given, such as `enable_thinking`.

    Raises UserError where there is none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any] | None = None) -> None:
        if tokenizer.chat_template is None:
            wrong = f"the tokenizer {tokenizer.name_or_path} has no chat template"
            raise UserError("prompt.chat", wrong, "Write prompt=bare, or prompt.chat=false")
        self.tokenizer = tokenizer
        self.named = f"the chat template of {tokenizer.name_or_path or 'the tokenizer'}"
        self.options = dict(options or {})
        self._loses_answers = False  # said once
        for name in self.options:
            if name not in tokenizer.get_chat_template():
                log.warning("prompt.options.%s: %s has no such option, so it changes nothing", name, self.named)

    def ids(self, opened: Sequence[str]) -> list[list[int]]:
        """The token ids of these texts, none of which ends with EOS: the model would go on behind the end of a text."""
        found = self.tokenizer(list(opened), add_special_tokens=False, return_attention_mask=False).input_ids
        return [texts.without_end(ids, self.tokenizer.eos_token_id) for ids in found]

    def opened(self, turns: Sequence[Turn]) -> str:
        """The conversation up to the beginning of the assistant's answer. Raises UserError where the template loses a text."""
        turns = self._allowed(turns)
        return self._whole(self._written(turns, True) if self._has_generation_prompt else self._up_to_answer(turns), turns)

    def begun(self, turns: Sequence[Turn], opened: str) -> str:
        """What the template has written of the answer itself in `opened(turns)`: a tag at the end, with the white space behind
        it, as `<think>\\n` in DeepSeek-R1's; "" without one.

        A tag that also stands open in front of a whole answer is the header of the assistant's turn, and one that is there
        without a generation prompt ends the user's text.
        """
        tag = TAG_AT_END.search(opened)
        if not tag or self._written(self._allowed(turns), False).endswith(tag[0]):
            return ""
        _, has_tag, behind = self._around_answer[0].rpartition(tag[1])
        return "" if has_tag and f"</{tag[1][1:]}" not in behind else tag[0]

    def answered(self, turns: Sequence[Turn], answer: str) -> str:
        """The conversation and the assistant's answer to it. Raises UserError where the template loses a text."""
        turns = self._allowed(turns)
        return self._whole(self._written([*turns, ("assistant", answer)], False), turns)

    def end(self, eos_ids: frozenset[int]) -> int | None:
        """The first of `eos_ids`, which end a completion, that the template writes behind an answer; None without one."""
        ids = self.tokenizer(self._around_answer[1], add_special_tokens=False).input_ids
        return next((i for i in ids if i in eos_ids), None)

    def _allowed(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns, without a system turn where the template has none."""
        return turns if turns[0][0] != "system" or self._has_system else _folded(turns)

    def _whole(self, text: str, turns: Sequence[Turn]) -> str:
        """The text, which has what was asked."""
        lost = {role: said for role, said in reversed(turns) if said.strip() not in text}
        if "assistant" in lost and not self._loses_answers:
            self._loses_answers = True
            log.warning("%s leaves out a part of an earlier answer (%r)", self.named, lost.pop("assistant")[:60])
        for said in (lost[role] for role in ("system", "user") if role in lost):
            wrong = f"{self.named} leaves out a text of the conversation ({said[:60]!r})"
            raise UserError("prompt.chat=true", wrong, "Write prompt=bare")
        return text

    @cached_property
    def _has_generation_prompt(self) -> bool:
        """Whether the template begins the assistant's turn by itself."""
        return self._written([("user", PROBE)], True) != self._written([("user", PROBE)], False)

    def _up_to_answer(self, turns: Sequence[Turn]) -> str:
        """What the template writes in front of an answer. Blanks alone are left out: they belong to its first token."""
        asked = self._written(turns, False)
        before, found, _ = self._written([*turns, ("assistant", ANSWER)], False).rpartition(ANSWER)
        before = before.rstrip(" ")
        return before if found and before.removeprefix(asked).strip() else asked

    @cached_property
    def _around_answer(self) -> tuple[str, str]:
        """What the template writes between a question and a whole answer, and behind the answer; "" where it is not known."""
        try:
            before, found, behind = self._written([("user", PROBE), ("assistant", ANSWER)], False).rpartition(ANSWER)
        except UserError:  # some templates refuse an assistant's turn
            return "", ""
        return (before.rpartition(PROBE)[2], behind) if found else ("", "")

    @cached_property
    def _has_system(self) -> bool:
        """Whether the template writes a system turn. Some leave it out without a word, and some refuse it."""
        try:
            if "2 + 2" in self._written([("system", "2 + 2"), ("user", PROBE)], True):
                return True
        except UserError:
            pass
        log.warning("the chat template has no system turn: the system prompt begins the first user's turn")
        return False

    def _written(self, turns: Sequence[Turn], generation: bool) -> str:
        messages = [{"role": role, "content": said} for role, said in turns]
        given = {"strftime_now": TODAY.strftime, **self.options}
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation, **given))
        except Exception as error:  # a template is a program: it may raise anything
            roles = ", ".join(role for role, _ in turns)
            wrong = f"{self.named} fails on turns of {roles} ({error_line(error)})"
            raise UserError("prompt.chat", wrong, "Write prompt=bare, or prompt.chat=false") from error


def _folded(turns: Sequence[Turn]) -> list[Turn]:
    """The system prompt at the beginning of the first user's turn."""
    (_, system), *rest = turns
    if not system:
        return rest
    first = next((i for i, (role, _) in enumerate(rest) if role == "user"), None)
    if first is None:
        return [("user", system), *rest]
    return [*rest[:first], ("user", f"{system}\n\n{rest[first][1]}"), *rest[first + 1 :]]


def is_instruct(tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int]) -> bool:
    """Whether a model with these end-of-sequence tokens was trained on the chat template of its tokenizer.

    Base models often have a template as well. But an instruct model ends a completion as the template ends an assistant's
    turn: Qwen2.5-0.5B-Instruct with `<|im_end|>`, and Qwen2.5-0.5B, with the same template, with `<|endoftext|>`.
    """
    if tokenizer.chat_template is None:
        return False
    return ChatTemplate(tokenizer).end(eos_ids) is not None
