"""Policy, reference and tokenizer: loaded from a folder or by hub name, or made with random weights.

What a folder holds is data. Weights are safetensors, never pickles, which run code when they are read. Python code that comes
with a model runs where `trust_remote_code` says so and nowhere else. A model that asks for code (`auto_map`) is refused without
it even where Transformers has a class for its `model_type`: that class may not be the one whose weights these are, and the run
would train another model than the one that was asked for.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from dash_exp.core.errors import UserError
from dash_exp.core.types import Sample
from dash_exp.models import adapter, packing
from dash_exp.models.batch import collate
from dash_exp.models.log_probs import token_logprobs

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

    `path`: a Transformers folder or a hub name; one with an adapter is read as its base with the adapter merged into it.
    `architecture`: settings of a Transformers configuration (`model_type` among them); with it, weights are random and `path`
    is not read. `lora`: settings of an adapter that is to be trained in place of the weights (see `adapter.add`). UserError for
    weights that are not all there, or not all finite: Transformers fills gaps with random numbers, and one NaN makes every
    log-probability NaN.
    """
    torch_dtype = getattr(torch, dtype)
    # cuDNN's attention plans anew for each shape that it has not seen, for tenths of a second, and ours change with each token
    torch.backends.cuda.enable_cudnn_sdp(False)
    if architecture:
        model = _random(architecture, dtype=torch_dtype, attn_implementation=attn_implementation)
    else:
        check_folder(path)
        base = adapter.base_of(path, f"model.path={path}") if adapter.is_folder(path) else path
        model, loading = _from_hub_or_folder(
            AutoModelForCausalLM,
            base,
            trust_remote_code=trust_remote_code,
            dtype=torch_dtype,
            use_safetensors=True,
            attn_implementation=attn_implementation,
            output_loading_info=True,
        )
        _check_weights(model, loading, f"model.path={base}")
        if adapter.has_one(model):
            raise UserError(f"model.path={path}", "is an adapter on the hub", "Download it, and give its folder")
        if base != path:
            model = adapter.merged_into(model, path, f"model.path={path}")
    if not trust_remote_code:
        _enable_packing(model)
    if lora is not None:
        adapter.add(model, None if architecture else path, **lora)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def _enable_packing(model: PreTrainedModel) -> None:
    """Let the model read packed micro-batches, if it then gives the log-probabilities of padded ones.

    Some models have an attention of their own, or scale and cap the logits: those are left as they are.
    """
    if not packing.possible(model):
        return
    model.eval()
    samples = [Sample(prompt, ids, 0.0) for prompt in ((1, 2, 3), (4,)) for ids in ((5, 6), (7, 1, 3, 2))]
    try:
        with torch.no_grad():
            padded_BT = token_logprobs(model, collate(samples, 0), 1.0)
            model.set_attn_implementation(packing.ATTENTION)
            packed_BT = token_logprobs(model, collate(samples, 0, packed=True), 1.0)
        right = torch.allclose(packed_BT, padded_BT, rtol=0, atol=1e-3 if model.dtype == torch.float32 else 0.05)
    except (RuntimeError, ValueError, TypeError, AttributeError):  # of an attention that does not take it
        right = False
    if not right:
        model.set_attn_implementation("sdpa")


def load_architecture(
    path: str, architecture: Mapping[str, Any] | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model that `load_policy` makes, without its weights: names and shapes alone, on torch's meta device.

    A folder needs no more than a config.json, and a generation_config.json where the policy has one.
    """
    if architecture:
        with torch.device("meta"):
            model = _random(architecture)
    else:
        check_folder(path, weights=False)
        path = adapter.base_of(path, f"model.path={path}") if adapter.is_folder(path) else path
        config = _from_hub_or_folder(AutoConfig, path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
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
    _check_weights(scorer, loading, f"reward.path={path}")
    scorer.config.get_text_config().pad_token_id = pad_id  # by it the model finds the last token of a padded row
    return scorer.eval().requires_grad_(False)


def load_tokenizer(path: str, setting: str = "model.tokenizer", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name. One without a padding token pads with its end-of-sequence token."""
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise UserError(f"{setting}={path}", "there is no such folder", "Give a folder with a tokenizer or a hub name")
    tokenizer: PreTrainedTokenizerBase = _from_hub_or_folder(
        AutoTokenizer, path, setting=setting, trust_remote_code=trust_remote_code
    )
    if not tokenizer("1 + 1", add_special_tokens=False).input_ids:  # where its file is gone, Transformers makes an empty one
        raise UserError(f"{setting}={path}", "has no vocabulary", "Save the tokenizer with save_pretrained")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{setting}={path}", "has no end-of-sequence token", "Set eos_token in the tokenizer")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def frozen_copy(policy: PreTrainedModel) -> PreTrainedModel:
    """The reference: the policy as it is now, in evaluation mode and without gradients.

    Of a policy with an adapter it is the policy itself, whose own weights do not change: see `adapter.off`.
    """
    if adapter.has_one(policy):
        return policy
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


def check_vocabulary(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Raise UserError where the tokenizer has tokens that the model does not. The other way round is common: rows to spare."""
    known, largest = int(policy.get_input_embeddings().weight.shape[0]), max(tokenizer.get_vocab().values())  # type: ignore
    if largest >= known:
        raise UserError(
            f"model.path={path}",
            f"has a vocabulary of {known} tokens, and the tokenizer's go up to {largest}",
            "Give the tokenizer that belongs to the model: model.tokenizer=DIR",
        )


def check_folder(path: str, setting: str = "model.path", weights: bool = True) -> None:
    """Raise UserError where `path` is a folder without a Transformers model in safetensors. Hub names pass.

    Without `weights` the configuration is enough.
    """
    where = f"{setting}={path}"
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise UserError(where, "there is no such folder", "Give a Transformers model folder or a hub name")
        return
    if adapter.is_folder(folder):
        check_folder(adapter.base_of(folder, where), f"{where}: its base", weights)
        return
    if not (folder / "config.json").is_file():
        raise UserError(where, "the folder has no config.json", "Give a Transformers model folder")
    if not weights:
        return
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for f in folder.glob(pattern))
        if pickles:
            raise UserError(
                where,
                f"the folder has weights as a pickle alone ({pickles[0]}), and to read one is to run the code in it",
                "Convert it to safetensors where you trust it: save_pretrained writes them",
            )
        raise UserError(where, "the folder has no weights (*.safetensors)", "Save the model with save_pretrained")
    _check_index(folder, where)


def fingerprint(path: str, setting: str = "model.path") -> str:
    """Which weights these are: the SHA-256 of a folder's safetensors files, or the commit that a hub name stands for."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return str(_from_hub_or_folder(AutoConfig, path, setting=setting)._commit_hash)
    check_folder(path, setting)
    digest = hashlib.sha256()
    if adapter.is_folder(folder):
        digest.update(fingerprint(adapter.base_of(folder, f"{setting}={path}"), setting).encode())
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()


def _check_index(folder: Path, where: str) -> None:
    """Of weights in several files: each that the index names is safetensors and there."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        files = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(where, f"{index.name} has no weight_map that can be read", "Save the model anew") from error
    for name in sorted(files):
        if not name.endswith(".safetensors") or not (folder / name).is_file():
            wrong = "is no safetensors file" if (folder / name).is_file() else "is not there"
            raise UserError(where, f"{index.name} names {name}, which {wrong}", "Save the model with save_pretrained")


def _check_weights(model: PreTrainedModel, loading: Mapping[str, Any], where: str) -> None:
    missing = sorted(map(str, loading["missing_keys"]))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(where, f"has no weights for {', '.join(missing[:3])}{more}", "Give a folder that was saved whole")
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and weight.numel() and not torch.isfinite(torch.stack(weight.aminmax())).all():
            raise UserError(where, f"{name} holds numbers that are not finite", "Give weights of a run that did not diverge")


def _random(architecture: Mapping[str, Any], **kwargs: Any) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture), **kwargs)
    except Exception as error:  # each architecture has errors of its own for settings that do not go together
        raise UserError("model.architecture", f"makes no model ({_said(error)})", "Mend its settings") from error


def _from_hub_or_folder(
    auto_class: Any, path: str, setting: str = "model.path", trust_remote_code: bool = False, **kwargs: Any
) -> Any:
    where = f"{setting}={path}"
    try:
        if not trust_remote_code:
            _refuse_code(path, where, can_be_trusted=setting.startswith("model."))
        return auto_class.from_pretrained(path, trust_remote_code=trust_remote_code, **kwargs)
    except UserError:
        raise
    except Exception as error:  # torn files raise whatever their reader has: tokenizers a bare Exception
        raise UserError(
            where, f"could not be loaded ({_said(error)})", "Give a Transformers folder or a hub name, and check the network"
        ) from error


def _refuse_code(path: str, where: str, can_be_trusted: bool) -> None:
    """Raise UserError where model or tokenizer ask for Python code (see the top of this file). Only JSON is read here."""
    for file, read in (("config.json", _config_dict), ("tokenizer_config.json", get_tokenizer_config)):
        if read(path).get("auto_map"):
            trust = "Add model.trust_remote_code=true where you trust it, or take" if can_be_trusted else "Take"
            raise UserError(
                where,
                f"asks to run Python code that comes with it (auto_map in {file})",
                f"{trust} auto_map out to load the class of Transformers",
            )


def _config_dict(path: str) -> Mapping[str, Any]:
    folder = Path(path).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        return {}  # a folder with a tokenizer alone
    return PreTrainedConfig.get_config_dict(path)[0]


def _said(error: Exception) -> str:
    """The first line of what a library says, or its kind."""
    return ((str(error).strip() or type(error).__name__).splitlines()[0])[:300]
