"""Loads policy, reference, reward model and tokenizer from a folder, a GGUF file or by hub name, or builds a random policy."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dash_exp.core.errors import UserError
from dash_exp.core.types import Sample
from dash_exp.models import adapter, generation, gguf, packing
from dash_exp.models.batch import collate
from dash_exp.models.folders import OF_TOKENIZER, check_folder, check_json
from dash_exp.models.log_probs import token_logprobs
from dash_exp.models.pretrained import from_pretrained
from dash_exp.models.random_policy import random_policy

ASSETS = Path(__file__).parents[1] / "assets"


def load_policy(
    path: str,
    dtype: str = "float32",
    architecture: Mapping[str, Any] | None = None,
    gradient_checkpointing: bool = False,
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
    lora: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A causal language model in training mode.

    `path`: a Transformers folder, a GGUF file or a hub name; a folder with an adapter is loaded as its base model with the
    adapter merged in. `architecture`: settings of a Transformers configuration, `model_type` among them; then weights are
    random and `path` is not read. `lora`: settings of an adapter that is trained in place of the weights (see `adapter.add`).
    The model computes the same in training and in evaluation mode, an adapter's dropout aside (see `without_noise`).

    Raises UserError for what cannot be loaded, and for weights that are incomplete or not finite: Transformers fills gaps with
    random numbers, and one NaN makes every log-probability NaN.
    """
    torch_dtype, wanted = getattr(torch, dtype), attn_implementation
    if not trust_remote_code or wanted == "varlen":
        attn_implementation = packing.OF_SETTING.get(wanted, wanted)
    # cuDNN's attention makes a plan for each new shape, in tenths of a second, and our shapes change with each token
    torch.backends.cuda.enable_cudnn_sdp(False)
    if architecture:
        model = random_policy(architecture, dtype=torch_dtype, attn_implementation=attn_implementation)
    else:
        check_folder(path)
        base = adapter.base_of(path, f"model.path={path}") if adapter.is_folder(path) else path
        model, loading = from_pretrained(
            AutoModelForCausalLM,
            base,
            trust_remote_code=trust_remote_code,
            dtype=torch_dtype,
            use_safetensors=True,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_check_weights` names them
            **gguf.for_weights(base),
        )
        gguf.forget(model)
        _check_weights(model, loading, f"model.path={base}")
        if adapter.has_one(model):
            raise UserError(f"model.path={path}", "is an adapter on the hub", "Download it, and give its folder")
        if base != path:
            model = adapter.merged_into(model, path, f"model.path={path}")
    without_noise(model)
    generation.check(model, "model.architecture" if architecture else f"model.path={path}")
    if not trust_remote_code:
        _enable_packing(model, packing.VARLEN if wanted in packing.OF_SETTING else packing.ATTENTION)
        if wanted == "flash_attention_2" and not packing.enabled(model):
            model.set_attn_implementation(wanted)  # that of Transformers, for padded rows
    if lora is not None:
        adapter.add(model, None if architecture else path, **lora)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def without_noise(model: PreTrainedModel) -> None:
    """Switch off, in place, what a model does in training mode alone: dropout, dropped layers and noise on a router's input.

    The policy is trained on completions that it sampled in evaluation mode: with noise it would be another policy, whose ratio
    and KL are far from 1 and 0 before the first step. Models keep these numbers in dropout layers, in attributes of other
    modules, and in their configuration. `router_jitter_noise` stays: where a module has it, it is a threshold in both modes.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _clear_noise(module)
        _clear_noise(getattr(module, "config", None))


def _clear_noise(part: Any) -> None:
    for name, value in list(vars(part).items()) if isinstance(part, torch.nn.Module | PreTrainedConfig) else ():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and value > 0 and ("drop" in name or "jitter" in name) and name != "router_jitter_noise":
            setattr(part, name, 0.0)


def _enable_packing(model: PreTrainedModel, attention: str) -> None:
    """Let the model read packed micro-batches by this attention, if they give the log-probabilities of padded ones.

    Models that have an attention of their own, or scale or cap the logits, are left as they are. Sliding windows are compared
    too: the samples are longer than they are meanwhile.
    """
    if not packing.possible(model):
        return
    model.eval()
    samples = [Sample(prompt, np.array(ids), 0.0) for prompt in ((1, 2, 3), (4,)) for ids in ((5, 6), (7, 1, 3, 2))]
    try:
        with torch.no_grad(), packing.short_windows(model, 3):
            padded_BT = token_logprobs(model, collate(samples, 0), 1.0)
            model.set_attn_implementation(attention)
            packed_BT = token_logprobs(model, collate(samples, 0, packed=True), 1.0)
        right = torch.allclose(packed_BT, padded_BT, rtol=0, atol=1e-3 if model.dtype == torch.float32 else 0.05)
    except (RuntimeError, ValueError, TypeError, AttributeError):  # from an attention that cannot read them
        right = False
    if not right:
        model.set_attn_implementation("sdpa")


def load_architecture(
    path: str, architecture: Mapping[str, Any] | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model that `load_policy` gives, without weights: only names and shapes, on torch's meta device.

    A folder needs only a config.json, and a generation_config.json where the policy has one. Raises UserError as `load_policy`.
    """
    if architecture:
        with torch.device("meta"):
            model = random_policy(architecture)
    else:
        check_folder(path, weights=False)
        path = adapter.base_of(path, f"model.path={path}") if adapter.is_folder(path) else path
        config = from_pretrained(AutoConfig, path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        if not gguf.is_named(path):
            with contextlib.suppress(OSError):  # not every model has one
                model.generation_config = GenerationConfig.from_pretrained(path)
    without_noise(model)
    generation.check(model, "model.architecture" if architecture else f"model.path={path}")
    return model


def load_scorer(path: str, dtype: str, pad_id: int) -> PreTrainedModel:
    """A reward model: sequence classification with one logit, frozen and in evaluation mode. `pad_id`: the tokenizer's padding.

    Raises UserError for what cannot be loaded or has another number of logits.
    """
    check_folder(path, setting="reward.path")
    scorer, loading = from_pretrained(
        AutoModelForSequenceClassification,
        path,
        setting="reward.path",
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    if scorer.config.num_labels != 1:
        raise UserError(f"reward.path={path}", f"gives {scorer.config.num_labels} logits", "Give a reward model, which has one")
    _check_weights(scorer, loading, f"reward.path={path}")
    scorer.config.get_text_config().pad_token_id = pad_id  # which is how the model finds the last token of a padded row
    return scorer.eval().requires_grad_(False)


def load_tokenizer(path: str, setting: str = "model.tokenizer", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, GGUF file or hub name. Without a padding token it pads with its end-of-sequence token.

    Raises UserError, which names `setting`, for what cannot be loaded, and without a vocabulary or end-of-sequence token.
    """
    if path.startswith((".", "/", "~")) and not gguf.is_named(path) and not Path(path).expanduser().is_dir():
        raise UserError(f"{setting}={path}", "there is no such folder", "Give a folder with a tokenizer or a hub name")
    check_json(Path(path).expanduser(), OF_TOKENIZER, f"{setting}={path}")
    tokenizer: PreTrainedTokenizerBase = from_pretrained(
        AutoTokenizer, path, setting=setting, trust_remote_code=trust_remote_code
    )
    if gguf.is_named(path) and tokenizer.bos_token is not None and gguf.adds_bos(path):
        tokenizer.add_bos_token = True
    if not tokenizer("1 + 1", add_special_tokens=False).input_ids:  # Transformers builds an empty one where the file is missing
        raise UserError(f"{setting}={path}", "has no vocabulary", "Save the tokenizer with save_pretrained")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{setting}={path}", "has no end-of-sequence token", "Set eos_token in the tokenizer")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def frozen_copy(policy: PreTrainedModel) -> PreTrainedModel:
    """The reference: a copy of the policy as it is now, in evaluation mode and without gradients.

    A policy with an adapter is returned itself: its own weights do not change (see `adapter.off`).
    """
    if adapter.has_one(policy):
        return policy
    reference = copy.deepcopy(policy).eval()
    return reference.requires_grad_(False)


def own_device(accelerator: str) -> torch.device:
    """The device of this rank, by the `accelerator` cpu or gpu: of several GPUs the current one (see `Ranks.use_gpu`)."""
    if accelerator == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("mps")


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of every token that ends a completion: the tokenizer's, and those of the model's generation config."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    extra = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [tokenizer.eos_token_id, *extra] if i is not None)


def context_length(model: PreTrainedModel, limit: int | None = None) -> int:
    """The most tokens, prompt and completion together, that the model allows, or a sampler's lower `limit`."""
    longest = int(model.config.max_position_embeddings)
    return longest if limit is None else min(longest, limit)


def check_vocabulary(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str | None) -> None:
    """Raise UserError where the tokenizer has tokens that the model does not have. Spare rows in the model are common.

    `path` is the model's; None for one of `model.architecture`.
    """
    known, largest = int(policy.get_input_embeddings().weight.shape[0]), max(tokenizer.get_vocab().values())  # type: ignore
    if largest >= known:
        wrong = f"has a vocabulary of {known} tokens, and the largest id of the tokenizer is {largest}"
        if path is None:
            right = f"Write model.architecture.vocab_size={largest + 1} or more, or give another model.tokenizer=DIR"
            raise UserError("model.architecture", wrong, right)
        raise UserError(f"model.path={path}", wrong, "Give the tokenizer that belongs to the model: model.tokenizer=DIR")


def fingerprint(path: str, setting: str = "model.path") -> str:
    """Identifies the weights: the SHA-256 of a GGUF file or a folder's safetensors files, or the commit of a hub name. Raises
    UserError.
    """
    folder = Path(path).expanduser()
    if gguf.is_named(path):
        gguf.check(path, f"{setting}={path}")
        with folder.open("rb") as weights:
            return hashlib.file_digest(weights, "sha256").hexdigest()
    if not folder.is_dir():
        return str(from_pretrained(AutoConfig, path, setting=setting)._commit_hash)
    check_folder(path, setting)
    digest = hashlib.sha256()
    if adapter.is_folder(folder):
        digest.update(fingerprint(adapter.base_of(folder, f"{setting}={path}"), setting).encode())
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()


def _check_weights(model: PreTrainedModel, loading: Mapping[str, Any], where: str) -> None:
    missing = sorted(map(str, loading["missing_keys"]))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(where, f"has no weights for {', '.join(missing[:3])}{more}", "Give a folder that was saved completely")
    for name, here, wanted in sorted(loading["mismatched_keys"]):
        wrong = f"{name} has the sizes {list(here)} and {list(wanted)} in config.json"
        raise UserError(where, wrong, "Give weights and config.json of one model")
    if unused := [name for name in sorted(map(str, loading["unexpected_keys"])) if _has_a_place_near(model, name)]:
        raise UserError(
            where,
            f"its weights are not those of the model in config.json, which has no {unused[0]} (one of {len(unused)})",
            "Give weights and config.json of one model",
        )
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and weight.numel() and not torch.isfinite(torch.stack(weight.aminmax())).all():
            raise UserError(where, f"{name} has numbers that are not finite", "Give weights of a run that did not diverge")


def _has_a_place_near(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight of this name belongs to a part that the model has: a weight or bias that one of its layers lacks, or a
    further layer.

    Parts that it has not at all (an image encoder, heads for several tokens) may be left out, and so may tables that earlier
    versions saved with the weights (`masked_bias`, `inv_freq`), which are no parameters.
    """
    parent, _, last = name.rpartition(".")
    if last not in ("weight", "bias"):
        return False
    while parent:
        try:
            near = model.get_submodule(parent)
        except AttributeError:
            parent = parent.rpartition(".")[0]
            continue
        return near is not model.base_model and getattr(near, last, None) is None
    return False
