"""The shape of a run's model, on torch's meta device: no weights, and for known models no network."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

from dash_exp.models import loading

# The shapes of the models that conf/model/ and conf/teacher/ name, as in their config.json.
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
_QWEN = {"model_type": "qwen2", "vocab_size": 151936, "num_key_value_heads": 2, "tie_word_embeddings": True}
_QWEN_7B = _QWEN | {"vocab_size": 152064, "num_key_value_heads": 4, "tie_word_embeddings": False}
_QWEN_3 = _QWEN | {"model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128}
_LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "tie_word_embeddings": False}
_LLAMA_32 = _LLAMA | {"tie_word_embeddings": True}
_SMOL = _LLAMA_32 | {"vocab_size": 49152, "num_key_value_heads": 3}
_GEMMA = {"model_type": "gemma3_text", "vocab_size": 262144, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512}
SHAPES: dict[str, dict[str, Any]] = {
    name: family | dict(zip(_SIZES, sizes, strict=True))
    for name, family, sizes in (
        ("Qwen/Qwen2.5-0.5B", _QWEN, (896, 4864, 24, 14, 32768)),
        ("Qwen/Qwen2.5-1.5B", _QWEN, (1536, 8960, 28, 12, 131072)),
        ("Qwen/Qwen2.5-3B", _QWEN, (2048, 11008, 36, 16, 32768)),
        ("Qwen/Qwen2.5-7B-Instruct", _QWEN_7B, (3584, 18944, 28, 28, 32768)),
        ("Qwen/Qwen3-0.6B", _QWEN_3, (1024, 3072, 28, 16, 40960)),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", _SMOL, (576, 1536, 30, 9, 8192)),
        ("google/gemma-3-270m", _GEMMA, (640, 2048, 18, 4, 32768)),
        ("meta-llama/Llama-3.2-1B", _LLAMA_32, (2048, 8192, 16, 32, 131072)),
        ("meta-llama/Llama-3.2-1B-Instruct", _LLAMA_32, (2048, 8192, 16, 32, 131072)),
        ("meta-llama/Meta-Llama-3-8B", _LLAMA, (4096, 14336, 32, 32, 8192)),
        ("meta-llama/Meta-Llama-3-70B", _LLAMA, (8192, 28672, 80, 64, 8192)),
    )
}


def architecture(cfg: DictConfig) -> PreTrainedModel:
    """The model of a configuration: from `model.architecture`, from `SHAPES`, from a folder, or from the hub.

    Raises UserError where the model cannot be read.
    """
    given: Any = OmegaConf.to_container(cfg.model.architecture) if cfg.model.architecture else None
    return built(cfg.model.path, given, cfg.model.trust_remote_code)


def built(path: str, given: dict[str, Any] | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a path, or with the settings `given`. Raises UserError where it cannot be read."""
    return _built(path, json.dumps(given or SHAPES.get(path)), trust_remote_code)


@lru_cache
def _built(path: str, given: str, trust_remote_code: bool) -> PreTrainedModel:
    return loading.load_architecture(path, json.loads(given), trust_remote_code)
