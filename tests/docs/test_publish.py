"""What is kept of a sweep in docs/results, and the way back to a sweep that can be continued."""

import io
import json
import os
import shutil
import sys
import tarfile

import publish
import pytest
import yaml
from conftest import LETTERS, composed
from omegaconf import OmegaConf
from synthetic import write_cell

from dash_exp.commands import hydra_setup
from dash_exp.core.errors import UserError
from dash_exp.models import loading
from dash_exp.report import samples, write
from dash_exp.results.cells import load
from dash_exp.results.run_folder import SWEEP_FILE, read_sweep, read_yaml

CELLS = [[f"seed={seed}", f"algo={algo}"] for seed in (0, 1) for algo in ("grpo", "dash")]


def add(sweep, *cells, **numbers):
    """Done cells of the synthetic sweep, and the list of all four cells."""
    for overrides in cells:
        cell = write_cell(sweep / ",".join(overrides), overrides, seconds=40 + 10 * CELLS.index(overrides), **numbers)
        OmegaConf.save(composed(), cell / ".hydra" / "config.yaml")
    listed = [{"folder": ",".join(overrides), "overrides": overrides} for overrides in CELLS]
    claims = [{"arm": ["algo=dash"], "against": ["algo=grpo"], "kind": "faster"}]
    (sweep / SWEEP_FILE).write_text(json.dumps({"claims": claims, "cells": listed}))


def published(sweep, folder):
    return publish.publish(load([sweep]), sweep, folder)


@pytest.fixture
def no_figures(monkeypatch):
    """Reports of one line, for tests of what else is kept: a real one takes seconds."""

    def write_line(results, out):
        (out / "figures").mkdir(parents=True, exist_ok=True)
        (out / "report.md").write_text(publish.cells_done(results))
        return out / "report.html"

    monkeypatch.setattr(publish, "write", write_line)


def told(report):
    """All that a report says, but when it was made, its page and the figures that only the page has."""
    files = {file.relative_to(report).as_posix(): file for file in report.rglob("*") if file.suffix in (".md", ".csv", ".svg")}
    texts = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    texts = {name: text for name, text in texts.items() if not name.endswith(".svg") or f"({name})" in texts["report.md"]}
    return texts | {"report.md": [line for line in texts["report.md"].splitlines() if not line.startswith("Created ")]}


def names(folder):
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_the_command_of_a_restored_sweep_runs_nothing_and_its_report_is_the_same(train, tmp_path):
    arms = ["-m", *LETTERS, "algo=grpo,dash"]
    first = train(*arms)
    assert first.returncode == 0, first.stderr
    sweep, folder = tmp_path / "multirun" / "small", tmp_path / "published"
    before = told(sweep / "report")
    assert published(sweep, folder) == folder / "report.md"
    assert told(folder) == before
    shutil.rmtree(sweep)
    restored, there = publish.restore(folder, sweep)
    assert (len(restored), there) == (2, [])
    again = train(*arms)
    assert again.returncode == 0, again.stderr
    assert "sweep of 2 cells into multirun/small, 2 of them done before" in again.stdout
    assert " -> " not in again.stdout  # no cell was started
    assert told(sweep / "report") == before
    assert any("sample completions" in line.lower() for line in before["report.md"])


def test_a_sweep_is_published_before_it_is_done_and_continued_from_there(tmp_path):
    sweep, folder, elsewhere = tmp_path / "sweep", tmp_path / "published", tmp_path / "elsewhere"
    add(sweep, *CELLS[:2])
    page = published(sweep, folder).read_text(encoding="utf-8")
    assert "cells done: 2 of 4 · failed: 0 · waiting: 2" in page
    assert "dash takes 1.25 times the training time of grpo" in page  # 50 / 40
    assert names(folder) >= {"report.md", "cells.csv", "claims.csv", "cells.tar.xz", "figures/legend.svg"}
    assert not [name for name in names(folder) if name.endswith((".html", ".png"))]
    shown = {part.partition(")")[0] for part in page.split("](")[1:] if part.startswith("figures/")}
    assert {name for name in names(folder) if name.endswith(".svg")} == shown
    assert "figures/curve-seconds-reward-mean.svg" in names(sweep / "report") - shown

    assert publish.restore(folder, elsewhere) == ([",".join(cell) for cell in CELLS[:2]], [])
    assert read_sweep(elsewhere) == read_sweep(sweep)
    for place in (sweep, elsewhere):
        add(place, *CELLS[2:], in_dist=(1, 1, 0, 0))
        write(load([place]), place / "report")
    assert told(elsewhere / "report") == told(sweep / "report")
    assert "cells done: 4 of 4" in published(elsewhere, folder).read_text(encoding="utf-8")
    assert publish.kept_cells(folder) == {",".join(cell) for cell in CELLS}


def test_the_same_cells_give_the_same_archive(no_figures, tmp_path):
    add(tmp_path / "sweep", *CELLS)
    published(tmp_path / "sweep", tmp_path / "one")
    for file in (tmp_path / "sweep").rglob("*"):
        os.utime(file, (1, 1))
    published(tmp_path / "sweep", tmp_path / "two")
    archives = [(tmp_path / name / "cells.tar.xz").read_bytes() for name in ("one", "two")]
    assert archives[0] == archives[1]


def test_what_is_kept_of_a_cell(no_figures, tmp_path):
    """Its record, and completions only of the seed and the outer step that the report shows."""
    sweep = tmp_path / "sweep"
    add(sweep, *CELLS)
    for cell in sweep.glob("seed=*"):
        (cell / "checkpoints").mkdir()
        (cell / "checkpoints" / "weights").write_text("large")
        (cell / "completions" / "step_00001.jsonl").write_text("{}\n")
    published(sweep, tmp_path / "published")
    publish.restore(tmp_path / "published", tmp_path / "again")
    record = {"config.yaml", ".hydra/config.yaml", ".hydra/overrides.yaml", "metrics.csv", "problems.csv", "result.json"}
    kept = {cell: names(tmp_path / "again" / cell) for cell in map(",".join, CELLS)}
    assert kept["seed=0,algo=dash"] == kept["seed=0,algo=grpo"] == record | {"completions/step_00003.jsonl"}
    assert kept["seed=1,algo=dash"] == kept["seed=1,algo=grpo"] == record
    for cell, files in kept.items():
        for file in files:
            assert (tmp_path / "again" / cell / file).read_bytes() == (sweep / cell / file).read_bytes()


def test_a_continued_sweep_shows_completions_of_a_seed_that_all_arms_have(no_figures, tmp_path):
    """Published with one cell of seed 0 and both of seed 1, whose completions are kept; those of seed 0 are not."""
    sweep, again = tmp_path / "sweep", tmp_path / "again"
    add(sweep, CELLS[0], *CELLS[2:])
    published(sweep, tmp_path / "published")
    publish.restore(tmp_path / "published", again)
    add(again, CELLS[1])
    seed, _, problems = samples.choose(load([again]))
    assert (seed, set(problems["p"])) == (1, {"grpo", "dash"})


def test_models_are_found_where_the_other_checkout_has_them(no_figures, tmp_path, monkeypatch):
    add(tmp_path / "sweep", CELLS[0])
    cell = tmp_path / "sweep" / ",".join(CELLS[0])
    config = yaml.safe_load((cell / "config.yaml").read_text())
    config["model"] |= {"path": "/one/models/Small", "tokenizer": "/one/models/Small", "file": "/one/models/Small-Instruct"}
    config["data"]["path"] = "/data/mine"
    config["teacher"] = {"path": "/one/assets/tiny_teacher"}
    (cell / "config.yaml").write_text(yaml.safe_dump(config))
    references = {"model": {"path": "${local:ORG/Small}", "tokenizer": "${model.path}"}}
    references["teacher"] = {"path": "${asset:tiny_teacher}"}
    (cell / ".hydra" / "config.yaml").write_text(yaml.safe_dump(references))
    assert publish.places(load([tmp_path / "sweep"])) == ["data.path=/data/mine", "model.file=/one/models/Small-Instruct"]
    published(tmp_path / "sweep", tmp_path / "published")

    def restored(name):
        publish.restore(tmp_path / "published", tmp_path / name)
        return read_yaml(tmp_path / name / cell.name / "config.yaml", dict)

    monkeypatch.setattr(hydra_setup, "MODELS", tmp_path / "other" / "models")
    changed = {"path": "ORG/Small", "tokenizer": "ORG/Small"}  # of the hub: this checkout has no folder of it
    config["teacher"]["path"] = str(loading.ASSETS / "tiny_teacher")
    assert restored("a") == config | {"model": config["model"] | changed}
    (tmp_path / "other" / "models" / "Small").mkdir(parents=True)
    (tmp_path / "other" / "models" / "Small" / "config.json").touch()
    changed = dict.fromkeys(changed, str(tmp_path / "other" / "models" / "Small"))
    assert restored("b") == config | {"model": config["model"] | changed}


def test_cells_that_are_there_stay_as_they_are(no_figures, tmp_path):
    sweep = tmp_path / "sweep"
    add(sweep, *CELLS[:2])
    published(sweep, tmp_path / "published")
    shutil.rmtree(sweep / "seed=0,algo=dash")
    (sweep / "seed=0,algo=grpo" / "result.json").write_text("{}")
    assert publish.restore(tmp_path / "published", sweep) == (["seed=0,algo=dash"], ["seed=0,algo=grpo"])
    assert (sweep / "seed=0,algo=grpo" / "result.json").read_text() == "{}"
    assert [cell.status for cell in load([sweep]).cells] == ["unfinished", "done", "waiting", "waiting"]


def test_the_report_is_written_where_a_result_is_newer(no_figures, tmp_path):
    sweep = tmp_path / "sweep"
    add(sweep, *CELLS[:2])
    published(sweep, tmp_path / "published")
    report = sweep / "report" / "report.md"
    report.write_text("as it was")
    assert published(sweep, tmp_path / "published").read_text() == "as it was"
    os.utime(report, (1, 1))
    assert published(sweep, tmp_path / "published").read_text() == "2 of 4"


def test_what_is_refused(no_figures, tmp_path):
    sweep, folder = tmp_path / "sweep", tmp_path / "published"
    add(sweep, *CELLS[:1], status="failed")
    with pytest.raises(UserError, match="has no cell that is done"):
        published(sweep, folder)
    add(sweep, *CELLS[1:3])
    published(sweep, folder)
    shutil.rmtree(sweep / ",".join(CELLS[1]))
    with pytest.raises(UserError, match=r"has 1 cell\(s\) that are not among the done cells of .*, such as seed=0,algo=dash"):
        published(sweep, folder)
    (tmp_path / "peers").mkdir()
    with pytest.raises(UserError, match="holds other results than those of a sweep"):
        published(sweep, tmp_path / "peers")
    with pytest.raises(UserError, match=r"cells.tar.xz: is not there"):
        publish.restore(tmp_path / "peers", sweep)
    archive = tmp_path / "peers" / "cells.tar.xz"
    with tarfile.open(archive, "w:xz") as opened:
        opened.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    with pytest.raises(UserError, match=r"is no archive of cells .*outside"):
        publish.restore(archive.parent, sweep)
    assert not (tmp_path / "outside").exists()
    with tarfile.open(archive, "w:xz") as opened:
        opened.addfile(tarfile.TarInfo(f"cell/{tmp_path}/outside"), io.BytesIO())
    publish.restore(archive.parent, sweep)
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("damage", [lambda contents: contents[:-50], lambda _: b"version https://git-lfs"])
def test_a_damaged_archive_is_named(no_figures, damage, tmp_path):
    add(tmp_path / "sweep", *CELLS)
    published(tmp_path / "sweep", tmp_path / "published")
    archive = tmp_path / "published" / "cells.tar.xz"
    archive.write_bytes(damage(archive.read_bytes()))
    for use in (published, lambda sweep, folder: publish.restore(folder, sweep)):
        with pytest.raises(UserError, match=r"cells\.tar\.xz: is no archive of cells"):
            use(tmp_path / "sweep", tmp_path / "published")


def test_cells_of_earlier_commands_are_named(no_figures, tmp_path, monkeypatch, capsys):
    """`sweep.json` has the cells of the last command. That of all cells takes the others in."""
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path / "results")
    sweep = tmp_path / "sweep"
    add(sweep, *CELLS[:3])
    write_cell(sweep / "failed", ["seed=9"], status="failed")
    every = (sweep / SWEEP_FILE).read_text()
    of_seed_1 = [{"folder": ",".join(overrides), "overrides": overrides} for overrides in CELLS[2:]]
    (sweep / SWEEP_FILE).write_text(json.dumps({"cells": of_seed_1}))
    monkeypatch.setattr(sys, "argv", ["publish.py", str(sweep), "mine"])
    publish.main()
    assert "note: 2 done cell(s) of earlier commands are left out, such as seed=0,algo=" in capsys.readouterr().out
    (sweep / SWEEP_FILE).write_text(every)
    publish.main()
    assert "note" not in capsys.readouterr().out
    assert len(publish.kept_cells(tmp_path / "results" / "mine")) == 3


@pytest.mark.parametrize(
    ("name", "scale", "expected"),
    [
        ("kl-small", "small", "kl"),
        ("kl-smollm2", "smollm2", "kl-smollm2"),
        ("mine", "smollm2", "mine-smollm2"),
        ("mine", "small", "mine"),
    ],
)
def test_the_name_is_that_of_the_sweep_and_its_scale(tmp_path, name, scale, expected):
    write_cell(tmp_path / "cell", [], settings={"name": name, "study": {"scale": scale}})
    assert publish.name_of(load([tmp_path]), tmp_path) == expected


def test_the_command(no_figures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path / "results")
    sweep = tmp_path / "sweep"
    add(sweep, *CELLS[:3], settings={"name": "kl-small"})

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["publish.py", *arguments])
        publish.main()
        return capsys.readouterr().out

    assert run(str(sweep)) == f"3 of 4 cells done: {tmp_path}/results/kl/report.md\n"
    assert run(str(sweep), "kl-mine").endswith("results/kl-mine/report.md\n")
    again = tmp_path / "again"
    assert run("--restore", "kl", str(again)) == f"3 cell(s) restored into {again}; 0 there already\n"
    with pytest.raises(UserError, match="Use one of kl, kl-mine"):
        run("--restore", "nothing", str(again))
    for wrong in (["--restore", "kl"], ["--other", str(sweep)], [str(sweep), "a", "b"], [str(sweep), "../a"], ["wandb:a/b"]):
        with pytest.raises(UserError):
            run(*wrong)
