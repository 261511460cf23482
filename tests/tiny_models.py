"""Models of every family with a few random weights, samples for them, and changes to the JSON of a saved folder."""

import json
import random

import torch
from completions import sample_of

from dash_exp.models.loading import load_policy

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LATENT = {  # whose cache does not hold the keys and values that attention gets
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 2,
}
FAMILIES = ["qwen2", "qwen3", "llama", "mistral", "olmo2", "phi3", "smollm3"]
WINDOW = 5  # shorter than most samples
WINDOWED = {
    "gemma3_text": {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8},
    "mistral": {},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
}


def samples(seed=0, prompts=5):
    rng = random.Random(seed)
    ids = lambda most: tuple(rng.randint(3, 60) for _ in range(rng.randint(1, most)))  # noqa: E731
    return [sample_of(prompt, ids(12), rng.uniform(-1, 1)) for prompt in [ids(9) for _ in range(prompts)] for _ in range(4)]


def random_model(family, windows=False):
    torch.manual_seed(0)
    more = {"phi3": {"sliding_window": None}, "mistral": {"sliding_window": None}, "deepseek_v3": LATENT}.get(family, {})
    if windows:
        more = WINDOWED[family] | {"sliding_window": WINDOW}
    return load_policy("", architecture={"model_type": family, **SMALL, **more})


def change(file, **values):
    """Change values in a file with a JSON object."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
