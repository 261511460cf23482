"""A reward model: a Transformers sequence-classification model."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.models import loading
from dash_exp.models.batch import cut
from dash_exp.models.chat import ChatTemplate
from dash_exp.models.texts import encoded
from dash_exp.rewards.base import Scores

log = logging.getLogger(__name__)


class ModelReward:
    """The single logit of a sequence-classification model that reads prompt and completion; with `squash` its sigmoid.

    `path`: a Transformers folder or a hub name. Weights must be safetensors, and code from the hub is never run. `chat`: the
    problem's conversation, or its text as a user's turn, and the completion as the assistant's answer in the tokenizer's chat
    template, if it has one; otherwise prompt and completion are joined as text. `max_tokens`: the most tokens of one batch,
    padding included. `device`: "cpu", "cuda", or "auto", which is the GPU if there is one; of several GPUs that of the rank.
    `dtype`: "float32", "bfloat16" or "float16".

    A logit does not say what is correct, so the component `accepted` is 1 where the reward is above `accept_above`, and
    evaluation counts that as correct.

    Errors, counted and with a reward of 0: a text longer than the context of the model, a text that is not valid Unicode, and
    a logit that is NaN or infinite. Raises UserError for a folder that is not such a model, for an unknown device or dtype, and
    for a conversation that the template refuses or of which it leaves out a text.
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
            raise UserError(f"reward.device={device}", "is not a device of this machine", "Use auto, cpu or (with a GPU) cuda")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"reward.dtype={dtype}", "is not known", "Use float32, bfloat16 or float16")
        self.tokenizer = loading.load_tokenizer(path, setting="reward.path")
        self.scorer = loading.load_scorer(path, dtype, self.tokenizer.pad_token_id)
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        torch.nn.Module.to(self.scorer, loading.own_device("cpu" if on_cpu else "gpu"))
        self.template = ChatTemplate(self.tokenizer) if chat and self.tokenizer.chat_template is not None else None
        self.squash = squash
        self.accept_above = accept_above
        self.max_tokens = max_tokens
        self.context = getattr(self.scorer.config, "max_position_embeddings", None) or math.inf

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        ids = self.ids(problems, texts)
        fits = self.readable(ids)
        rewards = [0.0] * len(ids)
        for rows in cut([(0, len(ids[i])) for i in fits], self.max_tokens):
            batch = [fits[row] for row in rows]
            with torch.inference_mode():
                logits = self.logits([ids[i] for i in batch]).tolist()
            for i, logit in zip(batch, logits, strict=True):
                rewards[i] = logit
        failed = set(range(len(ids))) - {i for i in fits if math.isfinite(rewards[i])}
        if self.squash:
            rewards = torch.tensor(rewards, dtype=torch.float64).sigmoid().tolist()
        for i in failed:
            rewards[i] = 0.0
            log.warning("grading failed on %s: %d tokens, context %s", problems[i].id, len(ids[i]), self.context)
        accepted = [float(reward > self.accept_above and i not in failed) for i, reward in enumerate(rewards)]
        return Scores(rewards, errors=len(failed), components={"accepted": accepted})

    def ids(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each prompt with its completion."""
        return [self._ids(problem, text) for problem, text in zip(problems, texts, strict=True)]

    def readable(self, ids: Sequence[Sequence[int]]) -> list[int]:
        """Which rows the model can read: those with tokens, and no more than its context."""
        return [i for i, row in enumerate(ids) if 0 < len(row) <= self.context]

    def _ids(self, problem: Problem, text: str) -> list[int]:
        """The token ids; none where the text has half of a surrogate pair, which no tokenizer can read."""
        try:
            text.encode()
        except UnicodeEncodeError:
            return []
        if self.template is None:
            return encoded(self.tokenizer, [problem.prompt + text], whole=True)[0]
        turns = list(problem.messages) or [("user", problem.prompt)]
        if turns[-1][0] == "assistant" and len(turns) > 1:  # the beginning of the answer, which `text` has
            turns.pop()
        try:
            chat = self.template.answered(turns, text)
        except UserError as error:
            raise UserError("reward.chat=true", error.wrong, "Write reward.chat=false") from error
        return self.tokenizer(chat, add_special_tokens=False).input_ids

    def logits(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """The logit of each row of one batch, shape (B,), which is padded on the right."""
        width = max(map(len, ids))
        ids_BL = torch.full((len(ids), width), self.tokenizer.pad_token_id)
        mask_BL = torch.zeros_like(ids_BL)
        for row, tokens in enumerate(ids):
            ids_BL[row, : len(tokens)] = torch.tensor(tokens)
            mask_BL[row, : len(tokens)] = 1
        device = self.scorer.device
        logits_B: Tensor = self.scorer(input_ids=ids_BL.to(device), attention_mask=mask_BL.to(device)).logits[:, 0]
        return logits_B
