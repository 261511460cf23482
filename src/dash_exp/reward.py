"""Rewards: problems and completions in, one number each out. Correct is 1, wrong is 0.

Grading that takes too long or breaks is never passed off as a wrong answer: it is counted apart (`Scores.timeouts`,
`Scores.errors`), although its reward can only be 0.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import regex
import torch
from pebble import ProcessPool

from dash_exp import model
from dash_exp.batch import cut
from dash_exp.errors import UserError
from dash_exp.grading import math_answer, math_equal, warm_up
from dash_exp.sandbox import Outcome, Sandbox
from dash_exp.types import Problem

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """One reward per completion, and how many gradings did not come to an end.

    `components` holds, by name, the parts of a summed reward before their weights: one number per completion each.
    """

    rewards: list[float]
    timeouts: int = 0
    errors: int = 0
    components: Mapping[str, list[float]] = field(default_factory=dict)


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

    `pattern: null` compares the whole completion, stripped.
    """

    grades = "answers"

    def __init__(self, pattern: str | None = None) -> None:
        self.pattern = _one_group(pattern)

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        answers = self.answers(texts)
        return Scores([float(a == p.answer.strip()) for p, a in zip(problems, answers, strict=True)])

    def answers(self, texts: Sequence[str]) -> list[str | None]:
        return [_last_match(self.pattern, text) for text in texts]


class MathReward:
    """1 where math-verify finds the last answer of the completion equivalent to the gold answer (numbers, LaTeX, sets...).

    With `pattern` only its last match (its one group) is read, and a completion without one has no answer. Completions with
    tags need it: math-verify does not find 42 in `<answer>42</answer>`, and takes a number that stands before it.

    math-verify's own time limits are alarms, which work on a main thread only and cannot break into a long computation in C.
    Here every answer is graded in one of `workers` processes and a process that needs more than `timeout_s` seconds for one
    is killed and replaced: this works from any thread. The pool starts with the first call and serves every later one.
    """

    grades = "answers"

    def __init__(self, timeout_s: float = 5.0, workers: int = 2, pattern: str | None = None) -> None:
        self.timeout_s = timeout_s
        self.workers = workers
        self.pattern = _one_group(pattern)
        self._pool: ProcessPool | None = None

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        calls = [(p.answer, self._read(t)) for p, t in zip(problems, texts, strict=True)]
        equal, timeouts, errors = self._map(math_equal, calls, [p.id for p in problems])
        return Scores([float(e or 0.0) for e in equal], timeouts, errors)

    def answers(self, texts: Sequence[str]) -> list[str | None]:
        """Answers as `grading.math_answer` spells them; None too where reading one did not come to an end."""
        found, timeouts, _ = self._map(
            math_answer, [(self._read(t),) for t in texts], [f"completion {i}" for i in range(len(texts))]
        )
        if timeouts:
            log.warning("reading the answers of %d completions took more than %s s each", timeouts, self.timeout_s)
        return found

    def _read(self, text: str) -> str:
        return text if self.pattern is None else _last_match(self.pattern, text) or ""

    def _map(
        self, function: Callable[..., Any], calls: Sequence[tuple[str, ...]], names: Sequence[str]
    ) -> tuple[list[Any], int, int]:
        """The result of each call, None where it did not come to an end; how many took too long; how many broke."""
        if self._pool is None:
            # spawn: forking a process that runs torch's threads can deadlock the child
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(max_workers=self.workers, initializer=warm_up, context=context)
        futures = [self._pool.schedule(function, args=list(call), timeout=self.timeout_s) for call in calls]
        results, timeouts, errors = [], 0, 0
        for name, future in zip(names, futures, strict=True):
            result = None
            try:
                result = future.result()
            except FutureTimeoutError:
                timeouts += 1
            except Exception as error:  # a worker that died, or math-verify's own failure: counted and shown
                errors += 1
                log.warning("grading failed on %s: %s: %s", name, type(error).__name__, error)
            results.append(result)
        return results, timeouts, errors

    def close(self) -> None:
        """Stop the worker processes."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None


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


FENCED = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


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
        try:
            self.pattern = regex.compile(pattern, regex.DOTALL)
        except (regex.error, TypeError) as error:
            raise UserError(f"reward.pattern={pattern}", f"is no regular expression ({error})", "Mend it") from error
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
    A text that is longer than the model's context and a logit that is not finite are errors: counted, with a reward of 0.
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
        fits = [i for i, row in enumerate(ids) if len(row) <= self.context]
        rewards = [0.0] * len(ids)
        for rows in cut([(0, len(ids[i])) for i in fits], self.max_tokens):
            batch = [fits[row] for row in rows]
            for i, logit in zip(batch, self._logits([ids[i] for i in batch]), strict=True):
                rewards[i] = logit
        failed = {i for i, reward in enumerate(rewards) if len(ids[i]) > self.context or not math.isfinite(reward)}
        if self.squash:
            rewards = torch.tensor(rewards, dtype=torch.float64).sigmoid().tolist()
        for i in failed:
            rewards[i] = 0.0
            log.warning("grading failed on %s: %d tokens, context %s", problems[i].id, len(ids[i]), self.context)
        accepted = [float(reward > self.accept_above and i not in failed) for i, reward in enumerate(rewards)]
        return Scores(rewards, errors=len(failed), components={"accepted": accepted})

    def _ids(self, prompt: str, text: str) -> list[int]:
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


def _one_group(pattern: str | None) -> re.Pattern[str] | None:
    try:
        compiled = re.compile(pattern) if pattern else None
    except re.error as error:
        raise UserError(f"reward.pattern={pattern}", f"is no regular expression ({error})", "Mend it") from error
    if compiled and compiled.groups != 1:
        raise UserError(f"reward.pattern={pattern}", f"has {compiled.groups} groups", "Put one pair of ( ) around the answer")
    return compiled


def _last_match(pattern: re.Pattern[str] | None, text: str) -> str | None:
    if pattern is None:
        return text.strip()
    found = pattern.findall(text)
    return found[-1].strip() if found else None
