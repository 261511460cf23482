"""Traces sampled from a teacher model, for SFT-M. They are written to a file once and then read from it.

The file has JSON lines. Its first line, the header, says what the traces depend on; each other line is the trace of one
problem, asked in one way: where the problem or its prompt has changed since, it is sampled again. A missing trace is sampled
when it is needed and added to the file, so the file can be used with every seed and number of steps. A run that finds all its
traces does not load the teacher.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Prompt
from dash_exp.data.prompt_form import PromptForm
from dash_exp.models import loading, texts
from dash_exp.rewards.base import Reward, correct
from dash_exp.sampling.base import Sampler, Sampling
from dash_exp.sampling.traces import TRIED, check_begun, continued

Key = tuple[str, str]  # a problem's id, and what was asked


@dataclass(frozen=True)
class Teacher:
    """The teacher model and how it is sampled.

    `path`: a Transformers folder or a hub name; `tokenizer` likewise. `template`: the text that the teacher gets, with the
    prompt of the problem in place of `{prompt}`; None = it gets the prompts of the run, as the policy does, whose tokenizer it
    then has. `chat`: this text is the user's turn in the chat template of the tokenizer. `tries`: a problem is sampled up to
    this many times, until a complete trace is correct by the reward. The first correct trace is used, else the last one. At
    `temperature` 0 there can be only one try.
    """

    path: str
    tokenizer: str
    template: str | None = "{prompt}"
    chat: bool = False
    temperature: float = 1.0
    max_tokens: int = 64
    tries: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.template is not None and "{prompt}" not in self.template:
            raise UserError(
                f"teacher.template={self.template}", "does not contain {prompt}", "Put {prompt} where the problem belongs"
            )
        for name, least in (("temperature", 0), ("max_tokens", 1), ("tries", 1), ("seed", 0)):
            if not getattr(self, name) >= least:
                raise UserError(f"teacher.{name}={getattr(self, name)}", "is too small", f"Use at least {least}")
        if self.temperature == 0 and self.tries > 1:
            raise UserError(
                f"teacher.tries={self.tries}",
                "gives the same trace every time at temperature 0",
                "Use teacher.tries=1, or a teacher.temperature above 0",
            )

    def header(self, data: str) -> dict[str, Any]:
        """What the traces depend on. A folder is identified by its name and its weights, so that it can be moved."""
        folder = Path(self.path).expanduser()
        asked = {k: v for k, v in asdict(self).items() if k not in ("path", "tokenizer")}
        name = folder.resolve().name if folder.exists() else self.path
        return {"teacher": name, "weights": loading.fingerprint(self.path, "teacher.path"), "data": data, **asked}

    def form(self) -> PromptForm | None:
        """How it is asked; None = by the prompts of the run."""
        return None if self.template is None else PromptForm(self.template, self.chat)


class TeacherSampler:
    """Returns the teacher's trace of each problem, in tokens of the policy and with what ends a completion of it.

    `sampler` creates the sampler of the teacher from (policy=, tokenizer=, compute_dtype=). `dtype`: of its weights and matrix
    products. `accelerator`: "cpu" or "gpu", as in Lightning. `file`: the file of traces. `data`: the name of the data set.
    `chunk`: how many problems are sampled and added to the file at a time; they are kept if the run is stopped.
    `separator`: see `texts.behind`.

    Raises UserError if the file belongs to another teacher, other settings, or other problems.
    """

    version = None

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        reward: Reward,
        teacher: Teacher,
        file: str,
        data: str,
        sampler: Callable[..., Sampler],
        dtype: str = "float32",
        accelerator: str = "cpu",
        chunk: int = 256,
        separator: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.reward = reward
        self.teacher = teacher
        self.make_sampler = sampler
        self.dtype = dtype
        self.accelerator = accelerator
        self.chunk = chunk
        self.separator = separator or ""
        self.form = teacher.form()
        if self.form is None and self._own_tokenizer().get_vocab() != tokenizer.get_vocab():
            wrong = f"gives the teacher the token ids of the policy's prompts, but {teacher.tokenizer} has other tokens"
            raise UserError("teacher.template=null", wrong, "Write teacher.template='{prompt}'")
        header = {**self.teacher.header(data), "reward": type(reward).__name__}
        self.traces = TraceFile(Path(file).expanduser(), header)
        self._loaded: tuple[Sampler, PreTrainedTokenizerBase] | None = None
        self._said = float("-inf")
        self._checked = False

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Nothing to do: the teacher does not change."""

    def rest(self) -> None:
        """Nothing to do: the teacher keeps its memory."""

    def close(self) -> None:
        """Nothing to close."""

    def sample(self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]) -> list[Completion]:
        keys = [self._key(prompt, sampling.stop) for prompt in prompts]
        asked = dict(zip(keys, prompts, strict=True))
        if not asked.keys() <= self.traces.rows.keys():
            with self.traces.locked():
                missing = [(key, prompt) for key, prompt in asked.items() if key not in self.traces.rows]
                for start in range(0, len(missing), self.chunk):
                    self.traces.add(self._write(missing[start : start + self.chunk], sampling.stop))
                    self._say()
        traces = [(prompt, self.traces.rows[key]) for prompt, key in zip(prompts, keys, strict=True)]
        self._check_begun(traces)
        return [self._completion(*trace, sampling.max_tokens) for trace in traces for _ in range(group_size)]

    def _check_begun(self, traces: Sequence[tuple[Prompt, Mapping[str, Any]]]) -> None:
        """Once: whether accepted traces are right behind what the policy's prompts have begun too (see `check_begun`)."""
        if self.form is None or self._checked:
            return
        some = [(prompt, row["trace"]) for prompt, row in traces if prompt.prefill and row["accepted"]][:TRIED]
        prompts, written = [prompt for prompt, _ in some], [text for _, text in some]
        added = [continued(prompt, text, self.separator, self.tokenizer) for prompt, text in some]
        check_begun(self.reward, prompts, written, added)
        self._checked = bool(some)

    def _key(self, prompt: Prompt, stop: tuple[str, ...]) -> Key:
        """The problem, and the text by which its trace is found: the problem's, with its conversation; or all that the policy
        gets, and what stops it.
        """
        problem = prompt.problem
        if self.form is not None:
            said = [f"[{role}] {text}" for role, text in problem.messages] if len(problem.messages) > 1 else []
            return problem.id, "\n".join([*said, problem.prompt])
        whole = self.tokenizer.decode(list(prompt.ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return problem.id, "".join([str(whole), *(f"\n[stops at {text!r}]" for text in stop)])

    def _completion(self, prompt: Prompt, trace: Mapping[str, Any], max_tokens: int) -> Completion:
        text, complete, stopped = trace["trace"], trace["complete"], trace.get("stopped", False)
        if self.form is not None:  # else it was written behind this prompt
            text = continued(prompt, text, self.separator, self.tokenizer)
        ids = texts.continuation(self.tokenizer, text, complete and not stopped, prompt.end)
        kept, whole = ids[:max_tokens] or [self.tokenizer.eos_token_id], complete and len(ids) <= max_tokens
        return Completion(np.array(kept), None, truncated=not whole, stopped=whole and stopped)

    def _asked(self, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
        """What the teacher gets for these prompts of the run."""
        if self.form is None:
            return list(prompts)
        try:
            return self.form.prompts([p.problem for p in prompts], tokenizer)
        except UserError as error:  # of the chat template
            raise UserError("teacher.chat=true", error.wrong, "Use teacher.chat=false") from error

    def _write(self, new: Sequence[tuple[Key, Prompt]], stop: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Sample new traces: one row for each key, in its order. `stop`: what ends a completion of the policy."""
        sampler, tokenizer = self._load()
        ask = self.teacher
        waiting = self._asked([prompt for _, prompt in new], tokenizer)
        seen = dict(key for key, _ in new)
        how = Sampling(ask.max_tokens, ask.temperature, stop=stop if self.form is None else ())
        rows: dict[str, dict[str, Any]] = {}
        for attempt in range(ask.tries):
            completions = sampler.sample(waiting, 1, how, (ask.seed, attempt))
            written = texts.decoded(tokenizer, completions)
            whole = [prompt.prefill + text for prompt, text in zip(waiting, written, strict=True)]
            right = correct(self.reward([p.problem for p in waiting], whole), self.reward)
            # What only the teacher's template has begun is a part of the trace: the policy's prompt may not have it.
            traces = written if self.form is None else whole
            for prompt, completion, text, accepted in zip(waiting, completions, traces, right, strict=True):
                rows[prompt.problem.id] = {
                    "problem": prompt.problem.id,
                    "prompt": seen[prompt.problem.id],
                    "trace": text,
                    "complete": not completion.truncated,
                    "accepted": not completion.truncated and accepted,
                    "tries": attempt + 1,
                } | ({"stopped": True} if completion.stopped else {})
            waiting = [p for p in waiting if not rows[p.problem.id]["accepted"]]
            if not waiting:
                break
        return iter(rows.values())

    def _load(self) -> tuple[Sampler, PreTrainedTokenizerBase]:
        """Load the teacher when it is first needed."""
        if self._loaded is None:
            print(f"traces: sampling with {self.teacher.path} what is missing in {self.traces.path}", flush=True)
            tokenizer = self.tokenizer if self.form is None else self._own_tokenizer()
            weights = loading.load_policy(self.teacher.path, self.dtype).eval().requires_grad_(False)
            weights.to(loading.own_device(self.accelerator))
            dtype = getattr(torch, self.dtype)
            self._loaded = (self.make_sampler(policy=weights, tokenizer=tokenizer, compute_dtype=dtype), tokenizer)
        return self._loaded

    def _own_tokenizer(self) -> PreTrainedTokenizerBase:
        return loading.load_tokenizer(self.teacher.tokenizer, "teacher.tokenizer")

    def _say(self, every_s: float = 10.0) -> None:
        if time.perf_counter() - self._said >= every_s:
            self._said = time.perf_counter()
            rows = self.traces.rows.values()
            accepted = sum(row["accepted"] for row in rows)
            print(f"traces: {len(rows):,} written, {accepted / len(rows):.1%} of them accepted", flush=True)


WAIT_S = 10.0  # for another run, before a message is printed
FIELDS = {"problem": str, "prompt": str, "trace": str, "complete": bool, "accepted": bool}  # of a line


class TraceFile:
    """The file of traces: a header, then one row per problem. It is created when the first row is added.

    An incomplete last line, left by a run that was killed while writing, is dropped when the next rows are added.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.header = dict(header)
        self.rows: dict[Key, dict[str, Any]] = {}
        self._read_to = 0  # bytes
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Path(f"{path}.lock").touch()
            self._read()
        except OSError as error:
            raise UserError(
                f"teacher.file={path}",
                f"cannot be read and written ({error.strerror})",
                "Give a file in a folder that you can write to",
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the file, after reading what other runs have added to it."""
        lock = FileLock(f"{self.path}.lock")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=WAIT_S)
            except Timeout:
                print(f"traces: waiting for another run that is writing {self.path}", flush=True)
        try:
            self._read()
            yield
        finally:
            lock.release()

    def add(self, rows: Iterator[dict[str, Any]]) -> None:
        """Append rows; only under `locked`."""
        new = list(rows)
        if not self.path.exists():
            draft = self.path.with_name(f"{self.path.name}.new")
            draft.write_bytes(_line(self.header))
            os.replace(draft, self.path)
            self._read_to = len(_line(self.header))
        with self.path.open("r+b") as file:
            file.truncate(self._read_to)  # what was read ends with a complete line
            file.seek(self._read_to)
            file.write(b"".join(map(_line, new)))
            file.flush()
            os.fsync(file.fileno())
            self._read_to = file.tell()
        self.rows |= {key_of(row): row for row in new}

    def _read(self) -> None:
        """Read what was added since the last reading, up to the last complete line."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # incomplete
                row = self._parse(line)
                if self._read_to == 0:
                    self._compare(row)
                else:
                    self.rows[key_of(row)] = row
                self._read_to += len(line)
        if self._read_to == 0:
            raise UserError(str(self.path), "is not a file of traces: it has no header", self._way_out())

    def _parse(self, line: bytes) -> dict[str, Any]:
        needed = self.header if self._read_to == 0 else FIELDS
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not set(needed) <= set(row):
                raise ValueError(f"a line needs the fields {', '.join(needed)}")
            wrong = [k for k, kind in FIELDS.items() if self._read_to > 0 and not isinstance(row[k], kind)]
            if wrong:
                raise ValueError(f"its field {wrong[0]} is not of type {FIELDS[wrong[0]].__name__}")
        except ValueError as error:
            where = f"{self.path}, at byte {self._read_to}"
            raise UserError(where, f"is not a line of a file of traces ({error})", self._way_out()) from error
        return row

    def _compare(self, found: Mapping[str, Any]) -> None:
        differ = [f"{k} {found.get(k)!r}, not {self.header[k]!r}" for k in self.header if found.get(k) != self.header[k]]
        if differ:
            raise UserError(str(self.path), f"its traces were sampled with {'; '.join(differ)}", self._way_out())

    @staticmethod
    def _way_out() -> str:
        return "Delete the file to sample again, or use another one (teacher.file=FILE)"


def key_of(row: Mapping[str, Any]) -> Key:
    """What the trace in this row belongs to."""
    return row["problem"], row["prompt"]


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()
