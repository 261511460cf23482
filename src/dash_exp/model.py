"""Policy, reference and tokenizer: loaded from a folder or by hub name, or made with random weights."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dash_exp.errors import UserError

ASSETS = Path(__file__).parent / "assets"


def load_policy(
    path: str,
    dtype: str = "float32",
    architecture: Mapping[str, Any] | None = None,
    gradient_checkpointing: bool = False,
    attn_implementation: str = "sdpa",
) -> PreTrainedModel:
    """A causal language model in training mode.

    `path`: a Transformers folder or a hub name. `architecture`: settings of a Transformers configuration (`model_type` among
    them); with it, weights are random and `path` is not read. Remote code is never run; weights are safetensors only.
    """
    torch_dtype = getattr(torch, dtype)
    if architecture:
        config = AutoConfig.for_model(**architecture)
        model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype, attn_implementation=attn_implementation)
    else:
        check_folder(path)
        model = _from_hub_or_folder(
            AutoModelForCausalLM, path, dtype=torch_dtype, use_safetensors=True, attn_implementation=attn_implementation
        )
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def load_architecture(path: str, architecture: Mapping[str, Any] | None = None) -> PreTrainedModel:
    """The model that `load_policy` makes, without its weights: names and shapes alone, on torch's meta device.

    A folder needs no more than a config.json, and a generation_config.json where the policy has one.
    """
    if architecture:
        config = AutoConfig.for_model(**architecture)
    else:
        check_folder(path, weights=False)
        config = _from_hub_or_folder(AutoConfig, path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if not architecture:
        with contextlib.suppress(OSError):  # most have one, not all
            model.generation_config = GenerationConfig.from_pretrained(path)
    return model


def load_scorer(path: str, dtype: str, pad_id: int) -> PreTrainedModel:
    """A sequence-classification model with one logit, for evaluation only. `pad_id` is the tokenizer's padding token."""
    check_folder(path, setting="reward.path")
    scorer, loading = _from_hub_or_folder(
        AutoModelForSequenceClassification,
        path,
        setting="reward.path",
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        output_loading_info=True,
    )
    if scorer.config.num_labels != 1:
        raise UserError(f"reward.path={path}", f"gives {scorer.config.num_labels} logits", "Give a reward model, with one")
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"]))
        raise UserError(f"reward.path={path}", f"has no weights for {missing}", "Give a trained sequence-classification model")
    scorer.config.get_text_config().pad_token_id = pad_id  # by it the model finds the last token of a padded row
    return scorer.eval().requires_grad_(False)


def load_tokenizer(path: str, setting: str = "model.tokenizer") -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name. One without a padding token pads with its end-of-sequence token."""
    tokenizer: PreTrainedTokenizerBase = _from_hub_or_folder(AutoTokenizer, path, setting=setting)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{setting}={path}", "has no end-of-sequence token", "Set eos_token in the tokenizer")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def frozen_copy(policy: PreTrainedModel) -> PreTrainedModel:
    """The reference: the policy as it is now, in evaluation mode and without gradients."""
    reference = copy.deepcopy(policy).eval()
    return reference.requires_grad_(False)


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends a completion: the tokenizer's, and those of the model's generation config."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    extra = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [tokenizer.eos_token_id, *extra] if i is not None)


def context_length(model: PreTrainedModel, limit: int | None = None) -> int:
    """The most tokens, prompt and completion together, that the model was made for, or a sampler's lower `limit`."""
    longest = int(model.config.max_position_embeddings)
    return longest if limit is None else min(longest, limit)


def check_folder(path: str, setting: str = "model.path", weights: bool = True) -> None:
    """Raise UserError where `path` is a folder without a Transformers model in safetensors. Hub names pass.

    Without `weights` the configuration is enough.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise UserError(f"{setting}={path}", "there is no such folder", "Give a Transformers model folder or a hub name")
        return
    if not (folder / "config.json").is_file():
        raise UserError(f"{setting}={path}", "the folder has no config.json", "Give a Transformers model folder")
    if weights and not any(folder.glob("*.safetensors")):
        raise UserError(f"{setting}={path}", "the folder has no weights (*.safetensors)", "Save the model with save_pretrained")


def fingerprint(path: str, setting: str = "model.path") -> str:
    """Which weights these are: the SHA-256 of a folder's safetensors files, or the commit that a hub name stands for."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return str(_from_hub_or_folder(AutoConfig, path, setting=setting)._commit_hash)
    check_folder(path, setting)
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()


def _from_hub_or_folder(auto_class: Any, path: str, setting: str = "model.path", **kwargs: Any) -> Any:
    try:
        return auto_class.from_pretrained(path, trust_remote_code=False, **kwargs)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{setting}={path}",
            f"could not be loaded ({str(error).splitlines()[0][:300]})",
            "Give a Transformers folder or a hub name, and check the network",
        ) from error
