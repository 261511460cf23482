"""Sampling with the training model itself, through Transformers: there is no second copy of the weights to update.

`model.generate` is not used because: the noise of each completion has its own key (so batching does not change results), the
log-probability of each token is kept without keeping logits, a prompt is processed once per group, and finished rows leave the
batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dash_exp.core.types import Completion, Prompt
from dash_exp.models import packing
from dash_exp.models.casting import cast
from dash_exp.models.loading import eos_ids
from dash_exp.models.log_probs import autocast, positions, scaled, slices
from dash_exp.sampling import decode
from dash_exp.sampling.base import Sampling, noise_seed
from dash_exp.sampling.cache import RoomyCache, SharedPrompts
from dash_exp.sampling.stopping import StopStrings

# Finished rows are removed from the batch when they are this share of it.
LEAVE_AT = 1 / 32
# Tokens from one look at which rows have finished to the next: on a GPU each look waits for all work that was given to it.
LOOK_EVERY = {"cpu": 1}  # by kind of device


class HFSampler:
    """A sampler that uses the policy directly. `max_sequences`: most completions decoded at a time; it bounds the KV cache."""

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_sequences: int,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.policy = policy
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids(policy, tokenizer)
        self.pad_id = int(tokenizer.pad_token_id)
        self.max_sequences = max_sequences
        self.compute_dtype = compute_dtype
        self.version: int | None = None

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Only notes the version: the policy itself samples."""
        self.version = version

    def rest(self) -> None:
        """Nothing to release: the KV cache is freed after each sampling call."""

    def close(self) -> None:
        """Nothing to close."""

    def sample(self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]) -> list[Completion]:
        rows = [(prompt, index) for prompt in prompts for index in range(group_size)]
        # Rows of similar prompt length are decoded together. The result has the order of the prompts.
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0].ids), i // group_size))
        completions: list[Completion | None] = [None] * len(rows)
        was_training = self.policy.training
        self.policy.eval()
        try:
            with (
                cast(self.policy, self.compute_dtype),
                torch.inference_mode(),
                autocast(self.policy.device, self.compute_dtype),
            ):
                for start in range(0, len(order), self.max_sequences):
                    chosen = order[start : start + self.max_sequences]
                    for i, completion in zip(chosen, self._decode([rows[i] for i in chosen], sampling, key), strict=True):
                        completions[i] = completion
        finally:
            self.policy.train(was_training)
        return [c for c in completions if c is not None]

    def _decode(self, rows: Sequence[tuple[Prompt, int]], sampling: Sampling, key: tuple[int, ...]) -> list[Completion]:
        """Decode one batch of completions, one token of every unfinished row at a time."""
        device = self.policy.device
        noise_BT = _noise(rows, sampling, key).to(device)
        ids_BT = torch.zeros(len(rows), sampling.max_tokens, dtype=torch.long, device=device)
        logprobs_BT = torch.zeros(len(rows), sampling.max_tokens, device=device)
        ends_BT = torch.zeros(len(rows), sampling.max_tokens, dtype=torch.bool, device=device)
        logits_BV, context = self._read_prompts([prompt for prompt, _ in rows])
        batch = torch.arange(len(rows), device=device)  # the rows that are still being decoded
        ended_B = torch.zeros(len(rows), dtype=torch.bool, device=device)
        looked = 0  # at so many tokens
        stops = StopStrings(self.tokenizer, sampling.stop)
        eos = torch.tensor(sorted(self.eos_ids), device=device)
        look_every = LOOK_EVERY.get(device.type, 8)
        for t in range(sampling.max_tokens):
            tokens_B, logprob_B = choose(logits_BV, sampling.temperature, noise_BT[batch, t], sampling.top_p)
            ids_BT[batch, t], logprobs_BT[batch, t] = tokens_B, logprob_B
            ends_BT[batch, t] = torch.isin(tokens_B, eos)
            if (t + 1) % look_every == 0 or t + 1 == sampling.max_tokens:  # nothing else here waits for the device
                if sampling.stop:
                    recent_BT = ids_BT[batch, max(0, looked + 1 - stops.window) : t + 1]
                    ends_BT[batch, looked : t + 1] |= stops.completed_by_each(recent_BT, t + 1 - looked)
                ended_B = ended_B | ends_BT[batch, looked : t + 1].any(dim=1)
                ended, looked = ended_B.tolist(), t + 1
                if t + 1 == sampling.max_tokens or all(ended):
                    break
                if sum(ended) >= LEAVE_AT * len(ended):
                    stay = context.leave(ended)
                    batch, tokens_B, ended_B = batch[stay], tokens_B[stay], ended_B[stay]
            logits_BV = context.next_logits(tokens_B)
        complete = ends_BT.any(dim=1)
        # a row that has ended may have been decoded on: its first end counts
        lengths = torch.where(complete, ends_BT.int().argmax(dim=1) + 1, sampling.max_tokens)
        columns = (numbers.cpu().numpy() for numbers in (ids_BT, logprobs_BT, lengths, complete))
        return [
            Completion(
                ids[:n],
                logprobs[:n] if sampling.top_p == 1 else None,
                truncated=not whole,
                stopped=bool(whole and ids[n - 1] not in self.eos_ids),
            )
            for ids, logprobs, n, whole in zip(*columns, strict=True)
        ]

    def _read_prompts(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Context]:
        """Next-token logits of each row, and the context it attends to. A prompt with several rows is processed once."""
        unique = list(dict.fromkeys(prompts))
        width = max(len(p.ids) for p in unique)
        ids_PC = torch.full((len(unique), width), self.pad_id)
        mask_PC = torch.zeros_like(ids_PC)
        for row, prompt in enumerate(unique):
            ids_PC[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask_PC[row, width - len(prompt.ids) :] = 1
        ids_PC, mask_PC = ids_PC.to(self.policy.device), mask_PC.to(self.policy.device)
        cache = RoomyCache(self.policy.config, cache_dtype(self.policy, self.compute_dtype, self.policy.device.type))
        output = read(self.policy, ids_PC, mask_PC, cache)
        index = {prompt: i for i, prompt in enumerate(unique)}
        prompt_of = [index[prompt] for prompt in prompts]
        padded = any(len(prompt.ids) < width for prompt in unique)
        context = look_back(self.policy, cache, mask_PC, prompt_of, padded)
        return output.logits[prompt_of, -1], context


def own_cache(policy: PreTrainedModel) -> bool:
    """Whether all layers have a `RoomyLayer` and our attention. Sliding windows have a layer and masks of Transformers."""
    return packing.enabled(policy) and not packing.windowed(policy)


def cache_dtype(policy: PreTrainedModel, compute_dtype: torch.dtype, device: str) -> torch.dtype | None:
    """The type in which attention computes on this kind of device, so that no token casts the whole cache; None = as it comes.

    Autocast would take keys in 32 bits, as the rotary embedding returns them, and cast all of them in each layer.
    """
    if device in packing.IN_32_BITS:
        return torch.float32 if own_cache(policy) else None
    return None if compute_dtype == torch.float32 else compute_dtype


def read(policy: PreTrainedModel, ids_PL: Tensor, mask_PL: Tensor, cache: RoomyCache) -> Any:
    """Fill the cache with prompts, padded on the left. The output has only the logits of the next token."""
    return policy(
        input_ids=ids_PL,
        attention_mask=mask_PL,
        position_ids=positions(mask_PL),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )


class Context:
    """What the completions of a batch attend to: a KV cache, with masks and positions."""

    policy: PreTrainedModel
    cache: RoomyCache

    def leave(self, ended: Sequence[bool]) -> Tensor:
        """Remove the completions that have ended. Returns the old index of each new row."""
        raise NotImplementedError

    def next_logits(self, tokens_B: Tensor) -> Tensor:
        """Logits, shape (B, V), after one more token of each completion."""
        raise NotImplementedError


class OwnContext(Context):
    """Each completion has its own copy of the keys and values of its prompt.

    `cache` has the prompts, `mask_PC` is 0 at padding, and `prompt_of` is the prompt of each completion.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        cache: RoomyCache,
        mask_PC: Tensor,
        prompt_of: Sequence[int],
        padded: bool,
    ) -> None:
        self.policy, self.cache, self.padded = policy, cache, padded
        self.in_32_bits = cache.dtype == torch.float32
        prompt_B = torch.tensor(prompt_of, device=mask_PC.device)
        self.cache.batch_select_indices(prompt_B)
        self.mask_BL = mask_PC[prompt_B]

    def leave(self, ended: Sequence[bool]) -> Tensor:
        order = self.cache.leave(ended, self.policy.device)
        self.mask_BL = self.mask_BL[order]
        return order

    def next_logits(self, tokens_B: Tensor) -> Tensor:
        mask_BL = self.mask_BL = torch.cat([self.mask_BL, self.mask_BL.new_ones(len(self.mask_BL), 1)], dim=1)
        position_B1 = positions(mask_BL)[:, -1:]
        if decode.known(self.policy):
            mask = packing.of_one_query(mask_BL, self.in_32_bits) if self.padded else None
            return decode.next_logits(self.policy, tokens_B, position_B1, self.cache, mask)
        output = self.policy(
            input_ids=tokens_B[:, None],
            attention_mask=packing.of_one_query(mask_BL, added=True) if self.in_32_bits else mask_BL,
            position_ids=position_B1,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1]


class SharedContext(Context):
    """The keys and values of a prompt are stored once for its group."""

    def __init__(self, policy: PreTrainedModel, cache: RoomyCache, mask_PC: Tensor, prompt_of: Sequence[int]) -> None:
        self.policy, self.cache = policy, RoomyCache(policy.config, cache.dtype)
        self.prompts = SharedPrompts(cache, mask_PC, prompt_of)
        self.position_B1 = mask_PC.sum(1)[prompt_of, None] - 1

    def leave(self, ended: Sequence[bool]) -> Tensor:
        order = self.cache.leave(ended, self.policy.device)
        self.prompts.stay(order)
        self.position_B1 = self.position_B1[order]
        return order

    def next_logits(self, tokens_B: Tensor) -> Tensor:
        self.position_B1 = self.position_B1 + 1
        return decode.next_logits(self.policy, tokens_B, self.position_B1, self.cache, prompts=self.prompts)


def look_back(policy: PreTrainedModel, cache: RoomyCache, mask_PC: Tensor, prompt_of: Sequence[int], padded: bool) -> Context:
    """The context of completions of these prompts. `padded`: whether the prompts have different lengths.

    Prompts are shared by their completions if `decode` supports the policy and attention computes in 32 bits (on CPUs).
    """
    if cache.dtype == torch.float32 and decode.known(policy) and len(mask_PC) < len(prompt_of):
        return SharedContext(policy, cache, mask_PC, prompt_of)
    return OwnContext(policy, cache, mask_PC, prompt_of, padded)


def choose(logits_BV: Tensor, temperature: float, noise_B: Tensor, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """The next token of each row and its log-probability (nats), by the inverse distribution function.

    `noise_B` in [0, 1) selects the first token whose cumulative probability exceeds it. At temperature 0 the token is the
    most likely one, and its log-probability is at temperature 1. With `top_p` below 1 only tokens of the nucleus can be chosen
    (see `Sampling`); the log-probability is still that of the whole distribution. Only some rows are computed at a time, which
    stay in the cache of a CPU.
    """
    chosen = [_chosen(logits_BV[rows], temperature, noise_B[rows], top_p) for rows in slices(logits_BV)]
    tokens_B, logprob_B = map(torch.cat, zip(*chosen, strict=True))
    return tokens_B, logprob_B


def _chosen(logits_RV: Tensor, temperature: float, noise_R: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """`choose` for some rows."""
    logprobs_RV = torch.log_softmax(scaled(logits_RV, temperature or 1.0), dim=-1)
    if temperature == 0:
        logprob_R, tokens_R = logprobs_RV.max(dim=-1)
        return tokens_R, logprob_R
    probs_RV = logprobs_RV.exp()
    cumulative_RV = (probs_RV if top_p == 1 else nucleus(probs_RV, top_p)).cumsum(dim=-1)
    total_R1 = cumulative_RV[:, -1:]  # 1 up to rounding
    below_R1 = torch.nextafter(total_R1, torch.zeros_like(total_R1))
    tokens_R1 = torch.searchsorted(cumulative_RV, torch.minimum(noise_R[:, None] * total_R1, below_R1), right=True)
    return tokens_R1[:, 0], logprobs_RV.gather(-1, tokens_R1)[:, 0]


def nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """The probabilities of the most likely tokens until they add up to `top_p`, and 0 for the others. Not renormalised."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV  # sum of the more likely tokens
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, sorted_BV.where(before_BV < top_p, 0))


def _noise(rows: Sequence[tuple[Prompt, int]], sampling: Sampling, key: tuple[int, ...]) -> Tensor:
    """Uniform random numbers, shape (B, T), each row with its own key."""
    if sampling.temperature == 0:
        return torch.zeros(len(rows), sampling.max_tokens)
    seeds = [noise_seed(key, prompt.problem.id, sampling.start + index) for prompt, index in rows]
    noise = [np.random.default_rng(seed).random(sampling.max_tokens, dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(noise))
