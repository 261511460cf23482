"""Whether a folder or file has a model or a tokenizer that can be loaded: checked before anything is read into memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dash_exp.core.errors import UserError
from dash_exp.models import adapter, gguf

INDEX = "model.safetensors.index.json"
# Where Transformers cannot read one of these it may go on without a word, or name another file.
OF_MODEL = ("config.json", "generation_config.json", INDEX)
OF_TOKENIZER = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "chat_template.json"),
)
LFS_POINTER = b"version https://git-lfs"


def check_folder(path: str, setting: str = "model.path", weights: bool = True) -> None:
    """Raise UserError, which names `setting`, where `path` is a folder without a Transformers model in safetensors.

    Hub names pass. Without `weights` a configuration is enough. A folder with an adapter is checked with its base model. A
    GGUF file is a model as well.
    """
    where = f"{setting}={path}"
    if gguf.is_named(path):
        gguf.check(path, where)
        return
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise UserError(where, "there is no such folder", "Give a Transformers model folder or a hub name")
        return
    if adapter.is_folder(folder):
        check_folder(adapter.base_of(folder, where), f"{where}: its base", weights)
        _check_safetensors(folder / adapter.WEIGHTS, where)
        return
    if not (folder / "config.json").is_file():
        raise UserError(where, "the folder has no config.json", "Give a Transformers model folder")
    check_json(folder, OF_MODEL, where)
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
    for name in _in_index(folder, where) or sorted(file.name for file in folder.glob("*.safetensors")):
        _check_safetensors(folder / name, where)


def check_json(folder: Path, names: Iterable[str], where: str) -> None:
    """Raise UserError for the first of these files that is there and does not hold a JSON object in UTF-8."""
    for name in names:
        if (folder / name).is_file():
            _read_object(folder / name, where)


def _read_object(file: Path, where: str) -> dict[str, Any]:
    try:
        content = file.read_bytes()
        value = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise UserError(where, f"{file.name} is not UTF-8 (byte {error.start})", "Save it in UTF-8") from error
    except (ValueError, RecursionError) as error:
        what = "is empty" if not content.strip() else "is damaged or cut off"
        raise UserError(where, f"{file.name} {what}: it is not valid JSON ({error})", "Copy or save it again") from error
    if not isinstance(value, dict):
        raise UserError(where, f"{file.name} is not a JSON object", "Copy or save it again")
    return value


def _in_index(folder: Path, where: str) -> list[str]:
    """Where weights are in several files: the files that the index names, which must exist and be safetensors."""
    if not (folder / INDEX).is_file():
        return []
    files = _read_object(folder / INDEX, where).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise UserError(where, f"{INDEX} has no readable weight_map", "Save the model again")
    names = sorted({str(name) for name in files.values()})
    for name in names:
        if not name.endswith(".safetensors") or not (folder / name).is_file():
            wrong = "is not a safetensors file" if (folder / name).is_file() else "does not exist"
            raise UserError(where, f"{INDEX} names {name}, which {wrong}", "Save the model with save_pretrained")
    return names


def _check_safetensors(file: Path, where: str) -> None:
    """Raise UserError unless the file is as long as its header says. The format: 8 bytes with the length of the header, the
    header, which is JSON, and the numbers.
    """
    with file.open("rb") as contents:
        start = contents.read(max(8, len(LFS_POINTER)))
        if start.startswith(LFS_POINTER):
            raise UserError(where, f"{file.name} is a pointer of Git LFS, not the weights", "Run git lfs pull in the folder")
        size, length = file.stat().st_size, int.from_bytes(start[:8], "little")
        try:
            contents.seek(8)
            header = json.loads(contents.read(length if length < size else 0))
            needs = (
                8 + length + max((tensor["data_offsets"][1] for k, tensor in header.items() if k != "__metadata__"), default=0)
            )
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            wrong = f"{file.name} ({size:,} bytes) is damaged or cut off: it has no readable header"
            raise UserError(where, wrong, "Copy or save it again") from error
    if size != needs:
        raise UserError(where, f"{file.name} has {size:,} bytes and should have {needs:,}", "Copy or save it again")
