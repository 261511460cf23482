"""Keeps the results of a sweep in the repository, and takes the cells of a sweep back from there.

    python docs/publish.py SWEEP_DIR [NAME]              # into docs/results/NAME
    python docs/publish.py --restore NAME SWEEP_DIR      # the way back

SWEEP_DIR    a sweep, as in multirun/kl-small
NAME         default: the name of the sweep and its scale: kl for kl-small, kl-smollm2 for kl with +scale=smollm2

docs/results/NAME gets the report without its HTML page (report.md, the figures that it shows as SVG, cells.csv and claims.csv),
and cells.tar.xz with the small files of each cell that is done. The report is written first where there is none, or where a
cell has a newer result. A sweep may be published before all of its cells are done, and again later. Its cells are those of its
last command: where several commands ran them (seed=0, then seed=1), give that of all cells (seed=0,1) first, which runs none of
them again.

--restore writes the cells of cells.tar.xz into SWEEP_DIR. The command of the sweep then runs the other cells only, and its
report is over all of them. A cell that has a folder there already stays as it is. What is not kept: checkpoints, logs, and the
completions that the report does not show.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from omegaconf import OmegaConf
from writing import IMAGE

from dash_exp.commands import cli  # registers the resolvers of the configuration
from dash_exp.core.errors import UserError
from dash_exp.core.files import whole_folder, write_whole
from dash_exp.core.words import first_line
from dash_exp.report import samples, write
from dash_exp.results.cells import Cell, Results, load, unlisted
from dash_exp.results.run_folder import RECORD_FILES, RESULT_FILE, SWEEP_FILE, flat, is_run, read_result, read_yaml

PUBLISHED = Path(__file__).parent / "results"
REPORT_FILES = ("report.md", "cells.csv", "claims.csv")
CELLS_FILE = "cells.tar.xz"
CONFIG, COMPOSED = "config.yaml", ".hydra/config.yaml"  # of a cell: with values, and with references
REFERENCE = re.compile(r"\$\{(local|asset):[^{}]+\}")  # to a model, which may be a folder of the checkout


def main() -> None:
    arguments = cli.help_or_arguments(__doc__)
    if arguments[:1] == ["--restore"]:
        if len(arguments) != 3 or arguments[2].startswith("-"):
            raise UserError(
                "--restore", "needs a name and a folder", "Write --restore NAME SWEEP_DIR, as in --restore kl multirun/kl-small"
            )
        restored, there = restore(PUBLISHED / arguments[1], Path(arguments[2]).expanduser())
        print(f"{len(restored)} cell(s) restored into {arguments[2]}; {len(there)} there already")
        return
    if not 1 <= len(arguments) <= 2 or any(argument.startswith("-") for argument in arguments):
        raise UserError(" ".join(arguments) or "SWEEP_DIR", "is no sweep and a name", "Write SWEEP_DIR [NAME]; see --help")
    sweep = Path(arguments[0]).expanduser()
    if not sweep.is_dir():
        raise UserError(arguments[0], "there is no such folder", "Give a sweep, as in multirun/kl-small")
    results = load([sweep])
    page = publish(results, sweep, PUBLISHED / (checked(arguments[1]) if len(arguments) == 2 else name_of(results, sweep)))
    print(f"{cells_done(results)} cells done: {page}")
    for setting in places(results):
        print(f"note: the cells have a setting that names a folder of this machine: {setting}")
    if others := of_earlier_commands(sweep):
        print(
            f"note: {len(others)} done cell(s) of earlier commands are left out, such as {others[0]}: {SWEEP_FILE} has those of"
        )
        print("the last one. Give the command of all cells, which runs none of these again, and publish again.")


# --- publishing --------------------------------------------------------------------------------------------------------


def publish(results: Results, sweep: Path, folder: Path) -> Path:
    """Keep the report and the done cells of a sweep in `folder`, in place of what it had. Returns the path of `report.md`.

    Raises UserError if no cell is done, or if cells that are kept there are not done in this sweep.
    """
    done = [cell for cell in results.cells if cell.status == "done"]
    if not done:
        raise UserError(str(sweep), "has no cell that is done", "Publish it when one is")
    if folder.exists() and not (folder / "report.md").is_file():
        raise UserError(str(folder), "holds other results than those of a sweep", "Choose another NAME")
    if lost := sorted(kept_cells(folder) - {cell.name for cell in done}):
        raise UserError(
            str(folder / CELLS_FILE),
            f"has {len(lost)} cell(s) that are not among the done cells of {sweep}, such as {lost[0]}",
            f"Restore them first (--restore {folder.name} {sweep}) and give the command of all cells, or remove {folder}",
        )
    report = report_of(results, sweep)
    with whole_folder(folder) as new:
        for name in REPORT_FILES:
            if (report / name).is_file():
                (new / name).write_bytes((report / name).read_bytes())
        (new / "figures").mkdir()
        for image in IMAGE.finditer((report / "report.md").read_text(encoding="utf-8")):  # the HTML page has more
            figure = f"figures/{image['name']}.svg"
            (new / figure).write_bytes((report / figure).read_bytes())
        with tarfile.open(new / CELLS_FILE, "w:xz") as archive:
            for name, content in kept(results, done, sweep):
                member = tarfile.TarInfo(name)  # without times and owners: the same cells give the same file
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder / "report.md"


def report_of(results: Results, sweep: Path) -> Path:
    """The folder of the sweep's report, which is written if a result is newer."""
    report = sweep / "report"
    sources = [sweep / SWEEP_FILE, *(cell.folder / RESULT_FILE for cell in results.cells)]
    newest = max(file.stat().st_mtime for file in sources if file.is_file())
    page = report / "report.md"
    if not page.is_file() or page.stat().st_mtime < newest:
        write(results, report)
    return report


def name_of(results: Results, sweep: Path) -> str:
    """`kl` for a sweep named kl-small, `kl-smollm2` for the same with +scale=smollm2."""
    cfg: Mapping[str, Any] = next((cell.config for cell in results.cells if cell.config), {})
    name, scale = str(cfg.get("name") or sweep.resolve().name), (cfg.get("study") or {}).get("scale") or "small"
    name = name.removesuffix(f"-{scale}")
    return checked(name if scale == "small" else f"{name}-{scale}")


def checked(name: str) -> str:
    """Raise UserError for what is not the name of a folder in docs/results."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"NAME={name}", "is not a name", "Use letters, digits, _, - and dots, as in kl-smollm2")
    return name


def cells_done(results: Results) -> str:
    """`4 of 9`"""
    return f"{sum(cell.status == 'done' for cell in results.cells)} of {len(results.cells)}"


def of_earlier_commands(sweep: Path) -> list[str]:
    """The done cells of a sweep that are not in its list, which its last command has written."""
    listed = (sweep / SWEEP_FILE).is_file()  # a search has no list, and all runs are its cells
    return [cell.name for cell in unlisted(sweep) if read_result(cell).get("status") == "done"] if listed else []


def kept(results: Results, done: Sequence[Cell], sweep: Path) -> Iterator[tuple[str, bytes]]:
    """The files of the archive: the list of cells; of each done cell its record, and the completions that the report shows."""
    if (sweep / SWEEP_FILE).is_file():
        yield SWEEP_FILE, (sweep / SWEEP_FILE).read_bytes()
    seed, step, _ = samples.choose(results)
    for cell in done:
        shown = samples.steps(cell).get(step) if step is not None and cell.seed == seed else None
        files = [cell.folder / name for name in (*RECORD_FILES, COMPOSED)] + ([shown] if shown else [])
        for file in files:
            if file.is_file():
                name = file.relative_to(cell.folder).as_posix()
                content = file.read_bytes()
                yield f"{cell.name}/{name}", with_references(content, models_of(cell)) if name == CONFIG else content


def kept_cells(folder: Path) -> set[str]:
    """The cells in the archive of a published sweep."""
    return archived(folder / CELLS_FILE).keys() - {""} if (folder / CELLS_FILE).is_file() else set()


# --- the checkout is another folder on another machine ----------------------------------------------------------------


def models_of(cell: Cell) -> dict[str, str]:
    """The models that a cell took from its checkout, by their folder there: `{"/x/models/A": "${local:ORG/A}"}`."""
    composed = dict(flat(read_yaml(cell.folder / COMPOSED, dict) or {}))
    return {str(value): composed[key] for key, value in flat(cell.config) if REFERENCE.fullmatch(str(composed.get(key)))}


def with_references(config: bytes, models: Mapping[str, str]) -> bytes:
    """`config.yaml` with references in place of the folders of models."""
    text = config.decode()
    for path, reference in models.items():
        text = re.sub(rf"(?<=: ){re.escape(path)}$", reference, text, flags=re.MULTILINE)
    return text.encode()


def resolved(config: bytes) -> bytes:
    """`config.yaml` with the folders of this checkout, or the hub names of models that it does not have."""
    return REFERENCE.sub(lambda found: OmegaConf.create([found[0]])[0], config.decode()).encode()


def places(results: Results) -> list[str]:
    """Settings of the done cells that hold a path from the root of this machine, as it is published: `data.path=/x`."""
    found: dict[str, None] = {}
    for cell in results.cells:
        if cell.status == "done" and cell.config:
            settings = yaml.safe_load(with_references((cell.folder / CONFIG).read_bytes(), models_of(cell)))
            found |= {f"{key}={v}": None for key, v in flat(settings) if isinstance(v, str) and v.startswith("/")}
    return list(found)


# --- the way back ------------------------------------------------------------------------------------------------------


def restore(folder: Path, sweep: Path) -> tuple[list[str], list[str]]:
    """Write the cells that are kept in `folder` into a sweep. Returns the restored ones, and those that it had already.

    Raises UserError if nothing is kept there.
    """
    if not (folder / CELLS_FILE).is_file():
        there = ", ".join(sorted(file.parent.name for file in PUBLISHED.glob(f"*/{CELLS_FILE}")))
        raise UserError(str(folder / CELLS_FILE), "is not there", f"Use one of {there}" if there else "Publish the sweep first")
    cells = archived(folder / CELLS_FILE)
    of_sweep = cells.pop("", {})
    sweep.mkdir(parents=True, exist_ok=True)
    if SWEEP_FILE in of_sweep and not (sweep / SWEEP_FILE).exists():
        write_whole(sweep / SWEEP_FILE, of_sweep[SWEEP_FILE].decode())
    missing = [cell for cell in cells if not is_run(sweep / cell)]
    for cell in missing:
        with whole_folder(sweep / cell) as new:
            for name, content in cells[cell].items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(resolved(content) if name == CONFIG else content)
    return missing, [cell for cell in cells if cell not in missing]


def archived(file: Path) -> dict[str, dict[str, bytes]]:
    """The files of an archive by cell and name; the cell of `sweep.json` is "". Raises UserError for what `publish` has not
    written: a damaged archive, or a path that leads out of the sweep.
    """
    cells: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                path = PurePosixPath(tarfile.data_filter(member, str(file.parent)).name).as_posix()
                opened = archive.extractfile(member)
                assert opened is not None, f"{path} is not a file"
                cell, _, name = path.partition("/") if "/" in path else ("", "", path)
                cells.setdefault(cell, {})[name] = opened.read()
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        wrong = f"is no archive of cells ({first_line(str(error)).rstrip('.')})"
        raise UserError(str(file), wrong, "Take it from git again, or remove it and publish the sweep again") from error
    return cells


if __name__ == "__main__":
    cli.launch(main)
