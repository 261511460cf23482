"""Whether a folder has a model that can be loaded: checked before anything is read into memory."""

from __future__ import annotations

import json
from pathlib import Path

from dash_exp.core.errors import UserError
from dash_exp.models import adapter


def check_folder(path: str, setting: str = "model.path", weights: bool = True) -> None:
    """Raise UserError, which names `setting`, where `path` is a folder without a Transformers model in safetensors.

    Hub names pass. Without `weights` a configuration is enough. A folder with an adapter is checked with its base model.
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
                f"the folder has its weights only as a pickle ({pickles[0]}), and reading a pickle runs the code in it",
                "If you trust it, convert it to safetensors: save_pretrained writes them",
            )
        raise UserError(where, "the folder has no weights (*.safetensors)", "Save the model with save_pretrained")
    _check_index(folder, where)


def _check_index(folder: Path, where: str) -> None:
    """Where weights are in several files: every file that the index names must exist and be safetensors."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        files = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(where, f"{index.name} has no readable weight_map", "Save the model again") from error
    for name in sorted(files):
        if not name.endswith(".safetensors") or not (folder / name).is_file():
            wrong = "is not a safetensors file" if (folder / name).is_file() else "does not exist"
            raise UserError(where, f"{index.name} names {name}, which {wrong}", "Save the model with save_pretrained")
