"""Rewards: problems and completions in, one number each out. Correct is 1, wrong is 0.

Grading that takes too long or breaks is never passed off as a wrong answer: it is counted apart (`Scores.timeouts`,
`Scores.errors`), although its reward can only be 0.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, cast

import regex
import torch

from dash_exp import model
from dash_exp.batch import cut
from dash_exp.errors import UserError
from dash_exp.grading import math_answer, math_equal, warm_up
from dash_exp.sandbox import Outcome, Sandbox
from dash_exp.types import Problem
from dash_exp.workers import Workers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """One reward per completion, and how many gradings did not come to an end.

    `components` holds, by name, the parts of a summed reward before their weights: one number per completion each.
    A completion with a number that is not finite, whoever made it, is an error and that number 0: one NaN among the advantages
    would end in every weight.
    """

    rewards: list[float]
    timeouts: int = 0
    errors: int = 0
    components: Mapping[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        broken = {
            i for values in (self.rewards, *self.components.values()) for i, v in enumerate(values) if not math.isfinite(v)
        }
        if broken:
            log.warning("grading failed on %d completions: their reward is not finite", len(broken))
            object.__setattr__(self, "errors", self.errors + len(broken))
            object.__setattr__(self, "rewards", _finite(self.rewards))
            object.__setattr__(self, "components", {name: _finite(values) for name, values in self.components.items()})


class Reward(Protocol):
    """A reward is a callable. Five attributes are optional:

    `grades`, "programs" where problems must have `tests`, "answers" where they must not;
    `components`, the names of those in its `Scores`;
    `correct`, the one of them in which 1 means a correct completion, where that is not the reward itself;
    `answers(texts)`, the answer that stands in each completion, equal ones spelled alike, None without one;
    `close()`, at the end of its use.
    """

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        """Grade `texts[i]` as a completion of `problems[i]`."""


def check_problems(reward: Reward, problems: Sequence[Problem]) -> None:
    """Raise UserError for a problem that this reward cannot grade."""
    grades = getattr(reward, "grades", None)
    for problem in problems:
        if grades == "programs" and not problem.tests:
            raise UserError(
                f"problem {problem.id}", "has no tests for its program", "Use reward=code with data=mbpp or mbpp_plus"
            )
        if grades == "answers" and problem.tests:
            raise UserError(f"problem {problem.id}", "asks for a program, and the reward reads an answer", "Use reward=code")


def correct(scores: Scores, reward: Reward) -> list[bool]:
    """Which completions are correct: those with exactly 1 in the component that `reward.correct` names, or as reward."""
    component = getattr(reward, "correct", None)
    return [value == 1 for value in (scores.components[component] if component else scores.rewards)]


class ExactReward:
    """1 where the last match of `pattern` (its one group) is the answer, character by character.

    `pattern: null` compares the whole completion, stripped. A pattern can take exponential time on some text: one that needs
    more than `timeout_s` seconds for a completion counts as a time-out.
    """

    grades = "answers"

    def __init__(self, pattern: str | None = None, timeout_s: float = 1.0) -> None:
        self.pattern = _one_group(pattern)
        self.timeout_s = timeout_s

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        answers, timeouts = _last_matches(self.pattern, texts, self.timeout_s)
        return Scores([float(a == p.answer.strip()) for p, a in zip(problems, answers, strict=True)], timeouts)

    def answers(self, texts: Sequence[str]) -> list[str | None]:
        """None too where a match took too long."""
        return _last_matches(self.pattern, texts, self.timeout_s)[0]


class MathReward:
    """1 where math-verify finds the last answer of the completion equivalent to the gold answer (numbers, LaTeX, sets...).

    With `pattern` only its last match (its one group) is read, and a completion without one has no answer. Completions with
    tags need it: math-verify does not find 42 in `<answer>42</answer>`, and takes a number that stands before it.

    math-verify's own time limits are alarms, which work on a main thread only and cannot break into a long computation in C.
    Here every answer is graded in one of `workers` processes, and a process that needs more than `timeout_s` seconds for one
    is killed and replaced: this works from any thread. An answer that needs more than `memory_mb` MiB counts as an error,
    unless math-verify itself makes do without, which it does where it only looks for one more way to compare two answers.
    """

    grades = "answers"

    def __init__(self, timeout_s: float = 5.0, workers: int = 2, pattern: str | None = None, memory_mb: int = 1024) -> None:
        self.timeout_s = timeout_s
        self.pattern = _one_group(pattern)
        self.workers = Workers(warm_up, timeout_s, workers, memory_mb)

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        read, slow = self._read(texts)
        calls = [(p.answer, t) for p, t in zip(problems, read, strict=True)]
        equal = self.workers.map(math_equal, calls, [p.id for p in problems])
        return Scores([float(e or 0.0) for e in equal.values], equal.timeouts + slow, equal.errors)

    def answers(self, texts: Sequence[str]) -> list[str | None]:
        """Answers as `grading.math_answer` spells them; None too where reading one did not come to an end."""
        read, slow = self._read(texts)
        found = self.workers.map(math_answer, [(t,) for t in read], [f"completion {i}" for i in range(len(texts))])
        if timeouts := found.timeouts + slow:
            log.warning("reading the answers of %d completions took more than %s s each", timeouts, self.timeout_s)
        return found.values

    def _read(self, texts: Sequence[str]) -> tuple[Sequence[str], int]:
        """What math-verify is to read, "" where there is no answer; how many took too long."""
        if self.pattern is None:
            return texts, 0
        found, timeouts = _last_matches(self.pattern, texts, self.timeout_s)
        return [text or "" for text in found], timeouts

    def close(self) -> None:
        """Stop the worker processes."""
        self.workers.close()


class CodeReward:
    """1 where the program in the completion passes the tests of its problem, run in a sandbox (`sandbox.Sandbox`).

    A program that is wrong, raises or ends early gets 0; one that needs more than `timeout_s` seconds counts as a time-out, and
    a sandbox that failed, or tests that cannot be run, as an error. `workers` programs are graded at a time. UserError where
    this machine cannot isolate programs in the way that `isolation` names.
    """

    grades = "programs"

    def __init__(
        self,
        isolation: str = "bwrap",
        timeout_s: float = 5.0,
        memory_mb: int = 512,
        processes: int = 1,
        workers: int = 2,
    ) -> None:
        self.workers = workers
        self.sandbox = Sandbox(isolation, timeout_s, memory_mb, processes)

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        with ThreadPoolExecutor(self.workers) as pool:
            outcomes = list(pool.map(self._grade, problems, texts))
        for problem, outcome in zip(problems, outcomes, strict=True):
            if outcome.status == "error":
                log.warning("grading failed on %s: %s", problem.id, outcome.detail)
        statuses = [outcome.status for outcome in outcomes]
        return Scores([float(s == "passed") for s in statuses], statuses.count("timeout"), statuses.count("error"))

    def _grade(self, problem: Problem, text: str) -> Outcome:
        return self.sandbox.grade(program_of(text), problem.tests)


# Possessive: given back one by one, the characters of one long word after a fence would take time to the square of its length.
FENCED = re.compile(r"^[ \t]*+```[ \t]*+(\w*+)[^\n`]*+\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def program_of(text: str) -> str:
    """The program in a completion: its last block fenced as python, else its last fenced block, else all of it.

    `"So:\\n```python\\nx = 1\\n```" -> "x = 1\\n"`. A block that the token limit cut off counts as well.
    """
    blocks = FENCED.findall(text)
    python = [code for language, code in blocks if language.lower() in ("python", "python3", "py")]
    return (python or [code for _, code in blocks] or [text])[-1]


class FormatReward:
    """1 where the whole completion, white space around it aside, matches `pattern`; `.` matches line breaks too.

    A pattern can take exponential time on some text: a match that needs more than `timeout_s` seconds counts as a time-out.
    """

    def __init__(self, pattern: str, timeout_s: float = 1.0) -> None:
        self.pattern = _compiled(pattern, regex.DOTALL)
        self.timeout_s = timeout_s

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        rewards, timeouts = [], 0
        for _, text in zip(problems, texts, strict=True):
            reward = 0.0
            try:
                reward = float(self.pattern.fullmatch(text.strip(), timeout=self.timeout_s) is not None)
            except TimeoutError:
                timeouts += 1
            rewards.append(reward)
        return Scores(rewards, timeouts)


class ModelReward:
    """The one logit of a sequence-classification model that reads prompt and completion, or its sigmoid (`squash`).

    `path`: a Transformers folder or a hub name; weights are safetensors only and remote code is never run. With `chat` the two
    are a user's and an assistant's turn in the tokenizer's chat template where it has one; otherwise they are joined as text.
    A batch takes at most `max_tokens` tokens, padding counted. `device: auto` is the GPU where there is one.

    No reward of a model means "correct". The component `accepted` is 1 where the reward is above `accept_above`, and
    evaluation counts that.
    A text that is longer than the model's context or no Unicode, and a logit that is not finite, are errors: counted, with a
    reward of 0.
    """

    components = ("accepted",)
    correct = "accepted"

    def __init__(
        self,
        path: str,
        chat: bool = True,
        squash: bool = True,
        accept_above: float = 0.5,
        max_tokens: int = 16384,
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
            raise UserError(f"reward.device={device}", "is no device of this machine", "Use auto, cpu, or cuda with a GPU")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"reward.dtype={dtype}", "is not known", "Use float32, bfloat16 or float16")
        self.tokenizer = model.load_tokenizer(path, setting="reward.path")
        self.scorer = model.load_scorer(path, dtype, self.tokenizer.pad_token_id)
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        torch.nn.Module.to(self.scorer, automatic if device == "auto" else device)
        self.chat = chat and self.tokenizer.chat_template is not None
        self.squash = squash
        self.accept_above = accept_above
        self.max_tokens = max_tokens
        self.context = getattr(self.scorer.config, "max_position_embeddings", None) or math.inf

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        ids = [self._ids(problem.prompt, text) for problem, text in zip(problems, texts, strict=True)]
        fits = [i for i, row in enumerate(ids) if 0 < len(row) <= self.context]
        rewards = [0.0] * len(ids)
        for rows in cut([(0, len(ids[i])) for i in fits], self.max_tokens):
            batch = [fits[row] for row in rows]
            for i, logit in zip(batch, self._logits([ids[i] for i in batch]), strict=True):
                rewards[i] = logit
        failed = set(range(len(ids))) - {i for i in fits if math.isfinite(rewards[i])}
        if self.squash:
            rewards = torch.tensor(rewards, dtype=torch.float64).sigmoid().tolist()
        for i in failed:
            rewards[i] = 0.0
            log.warning("grading failed on %s: %d tokens, context %s", problems[i].id, len(ids[i]), self.context)
        accepted = [float(reward > self.accept_above and i not in failed) for i, reward in enumerate(rewards)]
        return Scores(rewards, errors=len(failed), components={"accepted": accepted})

    def _ids(self, prompt: str, text: str) -> list[int]:
        """The tokens, none where the text has half a surrogate pair: no tokenizer reads that."""
        try:
            text.encode()
        except UnicodeEncodeError:
            return []
        if not self.chat:
            return self.tokenizer(prompt + text).input_ids
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        return cast(list[int], self.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))

    def _logits(self, ids: Sequence[Sequence[int]]) -> list[float]:
        """The logits of one batch, padded on the right."""
        width = max(map(len, ids))
        ids_BL = torch.full((len(ids), width), self.tokenizer.pad_token_id)
        mask_BL = torch.zeros_like(ids_BL)
        for row, tokens in enumerate(ids):
            ids_BL[row, : len(tokens)] = torch.tensor(tokens)
            mask_BL[row, : len(tokens)] = 1
        with torch.inference_mode():
            device = self.scorer.device
            return self.scorer(input_ids=ids_BL.to(device), attention_mask=mask_BL.to(device)).logits[:, 0].tolist()


class SumReward:
    """The weighted sum of other rewards. `Scores.components` has each part's own values by its name.

    `correct` names the part whose 1 means a correct completion, since a sum of 1.1 says nothing about that; the answers that
    evaluation counts are that part's too. A part may be a sum or have components itself: they are called `part/component`.
    """

    def __init__(self, parts: Mapping[str, Reward], weights: Mapping[str, float], correct: str) -> None:
        self.parts, self.weights = dict(parts), dict(weights)
        names = ", ".join(self.parts) or "(none)"
        for name in self.parts:
            if name not in self.weights:
                raise UserError("reward.weights", f"has no weight for {name}", f"Give one for each of {names}")
        if "mean" in self.parts:
            raise UserError("reward.parts.mean", "would be logged as reward/mean, which is the sum", "Choose another name")
        for name, weight in self.weights.items():
            if name not in self.parts:
                raise UserError(
                    f"reward.weights.{name}", f"there is no part of that name in reward.parts ({names})", "Rename it"
                )
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise UserError(f"reward.weights.{name}={weight}", "is not a finite number", "Write a number such as 0.1")
        if not any(self.weights.values()):
            raise UserError("reward.weights", "are all 0", "Give at least one part a weight")
        if correct not in self.parts:
            raise UserError(f"reward.correct={correct}", "is no part of the sum", f"Name the part that decides: {names}")
        self.components = [*self.parts]
        self.components += [f"{name}/{inner}" for name, part in self.parts.items() for inner in getattr(part, "components", ())]
        graded = {getattr(part, "grades", None) for part in self.parts.values()} - {None}
        if len(graded) > 1:
            raise UserError("reward.parts", "hold rewards of programs and of answers", "No problem has both: leave one out")
        self.grades = graded.pop() if graded else None
        decides = self.parts[correct]
        inner = getattr(decides, "correct", None)
        self.correct = f"{correct}/{inner}" if inner else correct
        if hasattr(decides, "answers"):
            self.answers = decides.answers

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        scores = {name: part(problems, texts) for name, part in self.parts.items()}
        components = {name: s.rewards for name, s in scores.items()}
        components |= {f"{name}/{inner}": values for name, s in scores.items() for inner, values in s.components.items()}
        return Scores(
            [sum(self.weights[name] * s.rewards[i] for name, s in scores.items()) for i in range(len(texts))],
            timeouts=sum(s.timeouts for s in scores.values()),
            errors=sum(s.errors for s in scores.values()),
            components=components,
        )

    def close(self) -> None:
        for part in self.parts.values():
            if hasattr(part, "close"):
                part.close()


def _finite(values: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) else 0.0 for value in values]


def _compiled(pattern: str | None, flags: int = 0) -> regex.Pattern[str]:
    try:
        return regex.compile(pattern, flags)
    except (regex.error, TypeError) as error:
        raise UserError(f"reward.pattern={pattern}", f"is no regular expression ({error})", "Mend it") from error


def _one_group(pattern: str | None) -> regex.Pattern[str] | None:
    compiled = _compiled(pattern) if pattern else None
    if compiled and compiled.groups != 1:
        raise UserError(f"reward.pattern={pattern}", f"has {compiled.groups} groups", "Put one pair of ( ) around the answer")
    return compiled


def _last_matches(pattern: regex.Pattern[str] | None, texts: Sequence[str], timeout_s: float) -> tuple[list[str | None], int]:
    """The last match in each text, None without one and where it took too long; how many did. Without a pattern all of it."""
    if pattern is None:
        return [text.strip() for text in texts], 0
    last: list[str | None] = []
    timeouts = 0
    for text in texts:
        found = []
        try:
            found = pattern.findall(text, timeout=timeout_s)
        except TimeoutError:
            timeouts += 1
        last.append(found[-1].strip() if found else None)
    return last, timeouts
