"""LoRA adapters, with PEFT (the extra `lora`): W + alpha/r B A in place of W, where only A and B are trained.

Hu et al., arXiv 2106.09685. The policy stays a Transformers model, and the adapter's layers are inside it. PEFT names the
weight W of such a layer `NAME.base_layer.weight`; without the adapter it is `NAME.weight`. A and B are in 32 bits, whatever the
dtype of the policy. With the adapter disabled the same policy is the reference, so there is no second copy of the weights.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dash_exp.core.errors import UserError
from dash_exp.core.words import error_line

LINEAR = (torch.nn.Linear, Conv1D)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # the files of PEFT


def need_peft(where: str) -> None:
    """Raise UserError, for the setting `where`, if PEFT is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise UserError(where, "needs PEFT, which is not installed", "Run pip install -e '.[lora]'")


def add(
    policy: PreTrainedModel,
    base: str | None,
    *,
    r: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    target_modules: str | list[str] = "all-linear",
) -> PreTrainedModel:
    """Give the policy an adapter, which changes nothing yet (B = 0), and freeze all other weights. Returns the policy.

    `base`: the folder or hub name of the policy's own weights, which is saved with the adapter; None for random weights.
    Raises UserError for target modules that do not exist or are not linear, and for embeddings: tied ones are also the output
    layer.
    """
    need_peft("model.adapter=lora")
    import peft

    settings = peft.LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=target_modules, task_type="CAUSAL_LM"
    )
    where = f"model.lora.target_modules={target_modules}"
    instead = f"Write model.lora.target_modules=[{','.join(names)}]" if (names := linear_names(policy)) else "Train all weights"
    try:
        policy.add_adapter(settings)
    except ValueError as error:
        raise UserError(where, f"allows no adapter ({error_line(error)})", instead) from error
    folder = Path(base or "").expanduser()
    settings.base_model_name_or_path = str(folder.resolve()) if base and folder.exists() else base
    layers = dict(_layers(policy))
    ends = (policy.get_input_embeddings(), policy.get_output_embeddings())
    if wrong := [name for name, layer in layers.items() if layer in ends or not isinstance(layer.get_base_layer(), LINEAR)]:
        raise UserError(where, f"{wrong[0]} is not a linear layer inside the model", instead)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return policy


def linear_names(policy: PreTrainedModel) -> list[str]:
    """Last parts of names, such as q_proj, that give an adapter to linear layers alone.

    None of those in the block of a mixture of experts: PEFT takes gate_proj, up_proj and down_proj for the experts, which are
    not linear layers.
    """
    ends = (policy.get_input_embeddings(), policy.get_output_embeddings())
    modules = [(name.split("."), module) for name, module in policy.named_modules() if "." in name]
    mixtures = {path[-2] for path, _ in modules if path[-1] == "experts"}
    linear: dict[bool, set[str]] = {True: set(), False: set()}
    for path, module in modules:
        linear[isinstance(module, LINEAR) and module not in ends and mixtures.isdisjoint(path)].add(path[-1])
    return sorted(linear[True] - linear[False])


def has_one(policy: PreTrainedModel) -> bool:
    """Whether the policy has adapter layers."""
    return bool(getattr(policy, "peft_config", None))


@contextlib.contextmanager
def off(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the model is as it was before training: adapter disabled, no dropout.

    A model without an adapter, such as a frozen copy, is not changed.
    """
    if not has_one(model):
        yield
        return
    was_training = model.training
    model.disable_adapters()
    model.eval()
    try:
        yield
    finally:
        model.enable_adapters()
        model.train(was_training)


def trained(policy: PreTrainedModel, keep_vars: bool = False) -> dict[str, Tensor]:
    """The part of the state dict that is trained: all of it, or only A and B. `keep_vars`: the parameters themselves."""
    state = policy.state_dict(keep_vars=keep_vars)
    return {name: tensor for name, tensor in state.items() if ".lora_" in name or not has_one(policy)}


def put_back(policy: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Load weights that `trained` gave into the policy. Raises RuntimeError for names that are not trained here."""
    check_names(policy, weights.keys())
    policy.load_state_dict(weights, strict=False)


def check_names(policy: PreTrainedModel, names: Collection[str]) -> None:
    """Raise RuntimeError where these are not the names of what is trained here."""
    if missing := trained(policy).keys() ^ set(names):
        raise RuntimeError(f"these are not the weights that are trained here; the names differ: {sorted(missing)[:3]}")


class Merged(Mapping[str, Tensor]):
    """The state dict of a model without adapter layers that computes the same. W + alpha/r B A is computed when it is read.

    `weights`: A and B by the names of `trained`, the present ones or older ones.
    """

    def __init__(self, policy: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights
        self.layers = dict(_layers(policy))
        self.base = base(policy)

    def __getitem__(self, name: str) -> Tensor:
        plain = self.base[name]
        layer, _, kind = name.rpartition(".")
        if kind != "weight" or layer not in self.layers:
            return plain
        a, b = (self.weights[f"{layer}.lora_{part}.default.weight"].detach().to(plain.device).float() for part in "AB")
        delta = self.layers[layer].scaling["default"] * (b @ a)
        return (plain.detach().float() + (delta.T if self.layers[layer].fan_in_fan_out else delta)).to(plain.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


def keep_base(policy: PreTrainedModel) -> None:
    """Keep the policy's own weights in CPU memory for `base`, before the policy is sharded. Training does not change them."""
    vars(policy)["kept_base"] = {name: tensor.cpu() for name, tensor in base(policy).items()}


def base(policy: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict of the policy's own weights, by the names that they have without an adapter."""
    if (kept := vars(policy).get("kept_base")) is not None:
        return dict(kept)
    return {n.replace(".base_layer.", "."): t for n, t in policy.state_dict().items() if ".lora_" not in n}


def whole(policy: PreTrainedModel, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """All weights of a model without adapter layers, from `weights` that `trained` gave: merged where there is an adapter."""
    return Merged(policy, weights) if has_one(policy) else weights


# --- folders -----------------------------------------------------------------------------------------------------------


def write(folder: Path, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write PEFT's two files, from the settings that `described` gave and the weights that `trained` gave."""
    (folder / CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    named = {f"base_model.model.{n.replace('.default.', '.')}": t.detach().contiguous() for n, t in weights.items()}
    safetensors.torch.save_file(named, folder / WEIGHTS, metadata={"format": "pt"})


def described(policy: PreTrainedModel) -> dict[str, Any] | None:
    """The adapter's settings as in PEFT's file; None without an adapter."""
    if not has_one(policy):
        return None
    config: Any = policy.peft_config["default"]
    settings = config.to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}


def is_folder(path: str | Path) -> bool:
    """Whether this is a folder with an adapter, such as a checkpoint of a run with one."""
    return (Path(path).expanduser() / CONFIG).is_file()


def base_of(path: str | Path, where: str) -> str:
    """The base model of the adapter in a folder: its folder or hub name. Raises UserError for a folder that cannot be used."""
    folder = Path(path).expanduser()
    try:
        settings = json.loads((folder / CONFIG).read_bytes())
        kind, model = settings["peft_type"], settings["base_model_name_or_path"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(where, f"{CONFIG} has no peft_type and base_model_name_or_path", "Save the adapter again") from error
    if kind != "LORA":
        raise UserError(where, f"is an adapter of kind {kind}", "Use one of kind LORA")
    if not (folder / WEIGHTS).is_file():
        raise UserError(where, f"the folder has no {WEIGHTS}", "Save the adapter with save_pretrained")
    if not isinstance(model, str) or not model:
        raise UserError(
            where,
            f"{CONFIG} names no base model: it was trained on random weights, which were not saved",
            "Use another adapter",
        )
    if is_folder(model):
        raise UserError(where, f"its base {model} is an adapter too", "Use an adapter whose base is a whole model")
    return model


def merged_into(policy: PreTrainedModel, path: str, where: str) -> PreTrainedModel:
    """The policy with the adapter of a folder merged into its weights, without adapter layers. UserError if it does not fit."""
    need_peft(where)
    import peft

    try:
        merged: PreTrainedModel = peft.PeftModel.from_pretrained(policy, str(Path(path).expanduser())).merge_and_unload()
    except Exception as error:  # damaged files, or an adapter of another model: each has errors of its own
        wrong = f"the adapter does not fit its base ({error_line(error)})"
        raise UserError(where, wrong, "Give the folder of a run") from error
    return merged.requires_grad_(True)


def _layers(policy: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    if not has_one(policy):
        return
    from peft.tuners.lora import LoraLayer

    yield from ((name, module) for name, module in policy.named_modules() if isinstance(module, LoraLayer))
