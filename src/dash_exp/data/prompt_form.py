"""How a problem is put to the model: as text or as a conversation, with what stands around it, and what stops the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem, Prompt
from dash_exp.models import texts
from dash_exp.models.chat import ChatTemplate, Turn

PLACE = "{prompt}"


@dataclass(frozen=True)
class PromptForm:
    """The options of conf/prompt/. Without any of them a prompt is the problem's text alone.

    `text`: what asks, with the problem in place of `{prompt}`. `chat`: by the tokenizer's chat template, which gets `options`.
    `system`: the system prompt. `prefill`: the beginning of the answer. `few_shot`: worked examples, drawn from training
    problems by `seed`. `separator`: between a text and what continues it (see `texts.behind`). `stop`: see `Sampling.stop`.
    `eos_ids`: no option, but the tokens that end a completion of the model, of which a chat ends with its own.
    """

    text: str = PLACE
    chat: bool | str = False
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    prefill: str | None = None
    few_shot: int = 0
    seed: int = 0
    separator: str | None = None
    stop: Sequence[str] = ()
    eos_ids: frozenset[int] = frozenset()
    _templates: dict[int, ChatTemplate] = field(default_factory=dict, init=False, repr=False, compare=False)

    def prompts(
        self, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, train: Sequence[Problem] = ()
    ) -> list[Prompt]:
        """The problems as prompts; worked examples are of `train`, and none is the problem itself. Raises UserError."""
        examples = self._drawn(train)
        shown = [[e for e in examples if e.prompt != p.prompt][: self.few_shot] for p in problems]
        if not self.chat:
            asked = [self._as_text(p, e) for p, e in zip(problems, shown, strict=True)]
            ids = texts.encoded(tokenizer, asked)
            return [Prompt(p, tuple(i), self.prefill or "", t) for p, i, t in zip(problems, ids, asked, strict=True)]
        template = self._template(tokenizer)
        turns, prefills = zip(*(self._as_chat(p, e) for p, e in zip(problems, shown, strict=True)), strict=True)
        opened = [template.opened(t) for t in turns]
        begun = [template.begun(t, text) for t, text in zip(turns, opened, strict=True)]
        added = [_added(text, prefill) for text, prefill in zip(opened, prefills, strict=True)]
        ids = template.ids([text + more for text, more in zip(opened, added, strict=True)])
        end = template.end(self.eos_ids) if self.eos_ids else None
        # A written solution is the whole turn where only the template has begun it.
        starts = [(b + more) or prefill for b, more, prefill in zip(begun, added, prefills, strict=True)]
        leads = [start if prefill else "" for start, prefill in zip(starts, prefills, strict=True)]
        return [Prompt(p, tuple(i), s, lead, end) for p, i, s, lead in zip(problems, ids, starts, leads, strict=True)]

    def _template(self, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        """The same object for all problems of a run, since it says once what the template does not have."""
        if id(tokenizer) not in self._templates:
            self._templates[id(tokenizer)] = ChatTemplate(tokenizer, {k: v for k, v in self.options.items() if v is not None})
        return self._templates[id(tokenizer)]

    def _drawn(self, train: Sequence[Problem]) -> list[Problem]:
        """One more than is shown, in place of a problem that is its own example."""
        if not self.few_shot:
            return []
        worked = {p.prompt: p for p in sorted(train, key=_solution, reverse=True) if _solution(p)}
        if len(worked) <= self.few_shot:
            which = "" if all(_solution(problem) for problem in train) else " with a solution or an answer"
            wrong = f"is not less than the {len(worked)} different training problems{which}"
            raise UserError(f"prompt.few_shot={self.few_shot}", wrong, "Lower it, or choose data with more of them")
        return [worked[prompt] for prompt in sorted(worked, key=self._lot)[: self.few_shot + 1]]

    def _lot(self, prompt: str) -> bytes:
        """Draws by the text alone, so that an example stays where other problems come or go."""
        return hashlib.sha256(f"{self.seed} {prompt}".encode(errors="surrogatepass")).digest()

    def _asks(self, problem: str) -> str:
        return self.text.replace(PLACE, problem)

    def _as_text(self, problem: Problem, examples: Sequence[Problem]) -> str:
        parts = [] if self.system is None else [self.system]
        parts += [self._continued(self._asks(e.prompt), _solution(e)) for e in examples]
        asked = self._asks(problem.prompt)
        return "\n\n".join([*parts, self._continued(asked, self.prefill) if self.prefill else asked])

    def _continued(self, text: str, more: str) -> str:
        return text + texts.behind(text, more, self.separator or "")

    def _as_chat(self, problem: Problem, examples: Sequence[Problem]) -> tuple[list[Turn], str]:
        """The turns, and the beginning of the answer, which the problem's own conversation may have."""
        turns = list(problem.messages) or [("user", problem.prompt)]
        begun = turns.pop()[1] if turns[-1][0] == "assistant" and len(turns) > 1 else ""
        if turns[-1][0] == "user":
            turns[-1] = ("user", self._asks(turns[-1][1]))
        system = [] if self.system is None else [("system", self.system)]
        if turns[0][0] == "system":
            system = [turns.pop(0)]
        shots = [turn for e in examples for turn in (("user", self._asks(e.prompt)), ("assistant", _solution(e)))]
        return [*system, *shots, *turns], begun + (self.prefill or "")


def _solution(example: Problem) -> str:
    return example.solution or example.answer


def _added(opened: str, prefill: str) -> str:
    """What a prefill adds to the beginning of the turn. A template that begins the answer itself, as with `<think>`, does not
    get that twice.
    """
    if prefill.strip() and opened.rstrip().endswith(prefill.strip()):
        return ""
    rest = texts.without_tag(prefill, opened)
    return prefill if rest is None else rest
