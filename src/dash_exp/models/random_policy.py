"""A policy of random weights, from the settings of `model.architecture`; and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dash_exp.core.errors import UserError
from dash_exp.core.words import error_line


def random_policy(architecture: Mapping[str, Any], **kwargs: Any) -> PreTrainedModel:
    """A causal language model of this architecture; on torch's meta device it has no weights. `kwargs`: see `from_config`.

    Raises UserError for settings of which Transformers makes no model, or one that cannot read two tokens.
    """
    try:
        config = AutoConfig.for_model(**architecture)
        _check_names(architecture)
        _check_sizes(config)
        model = AutoModelForCausalLM.from_config(config, **kwargs)
        if model.device.type != "meta":
            with torch.no_grad(), torch.random.fork_rng(devices=[]):  # most sizes that do not fit together are met only here
                model.train()(input_ids=torch.zeros(1, 2, dtype=torch.long))
    except UserError:
        raise
    except Exception as error:  # each architecture has errors of its own for settings that do not fit together
        raise UserError("model.architecture", f"describes no model ({error_line(error)})", "Fix its settings") from error
    return model


def _check_names(architecture: Mapping[str, Any]) -> None:
    """Transformers takes any name. Some that it does not list are used, so only one that looks like another is refused."""
    known = dir(AutoConfig.for_model(architecture["model_type"]))
    for name in architecture.keys() - {"model_type"} - set(known):
        if close := get_close_matches(name, known, n=1, cutoff=0.85):
            raise UserError(f"model.architecture.{name}", "there is no such setting", f"Write {close[0]}")


def _check_sizes(config: PreTrainedConfig) -> None:
    """What all architectures have in common. `head_dim` makes the number of heads independent of the hidden size."""
    config = config.get_text_config()
    layers, hidden, heads, groups, head = (
        getattr(config, name, None)
        for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    if layers is not None and layers < 1:
        raise UserError(f"model.architecture.num_hidden_layers={layers}", "leaves a model without layers", "Write 1 or more")
    _check_divides("num_attention_heads", heads, "hidden_size", hidden if head is None else None)
    _check_divides("num_key_value_heads", groups, "num_attention_heads", heads)


def _check_divides(name: str, value: int | None, of: str, total: int | None) -> None:
    if value is not None and total is not None and (value < 1 or total % value):
        raise UserError(f"model.architecture.{name}={value}", f"does not divide {of}={total}", "Write a number that does")
