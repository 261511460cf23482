"""A model in one file of llama.cpp's format (GGUF), which Transformers reads into ordinary weights (the extra `gguf`).

The file holds quantised weights, the configuration and the tokenizer. Once loaded, the model is like one from a folder: its
weights are numbers of `model.dtype`, and its checkpoints are Transformers folders.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from dash_exp.core.errors import UserError

SUFFIX, MAGIC = ".gguf", b"GGUF"
PACKAGES = ("gguf", "accelerate")  # that Transformers needs for it


def is_named(path: str | Path) -> bool:
    """Whether the path names such a file, by its ending. A folder is none, whatever its name."""
    return str(path).endswith(SUFFIX) and not Path(path).expanduser().is_dir()


def check(path: str, where: str) -> None:
    """Raise UserError, for the setting `where`, where the file or a package is missing, or its first bytes are not GGUF's."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(where, "there is no such file", "Give a .gguf file on this machine, a model folder or a hub name")
    with file.open("rb") as contents:
        if contents.read(len(MAGIC)) != MAGIC:
            raise UserError(where, "is not a GGUF file: it does not begin with GGUF", "Copy or download it again")
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(where, f"needs the package {missing[0]}, which is not installed", "Run pip install -e '.[gguf]'")


def arguments(path: str) -> dict[str, Any]:
    """What Transformers' `from_pretrained` of a configuration or a tokenizer takes for this file."""
    file = Path(path).expanduser()
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}


def for_weights(path: str) -> dict[str, Any]:
    """What `from_pretrained` of a model takes as well where this is such a file: on some devices its weights would stay
    quantised, and such weights cannot be trained.
    """
    from transformers.utils.quantization_config import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)} if is_named(path) else {}


def adds_bos(path: str) -> bool:
    """Whether the file asks for BOS before a text. Transformers does not read that, and without BOS Gemma writes nonsense."""
    from transformers.integrations.gguf import read_gguf_metadata  # in 0.2 s; the package gguf needs 20 s for Gemma's tokens

    metadata, _ = read_gguf_metadata(str(Path(path).expanduser()))
    return bool(metadata.get("tokenizer.ggml.add_bos_token"))


def forget(model: Any) -> None:
    """Remove what says that the model is quantised, in place: Transformers would refuse to save it, and vLLM to load it."""
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    for module in model.modules():
        vars(getattr(module, "config", None) or module).pop("_is_quantized", None)
