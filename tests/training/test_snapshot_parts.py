"""Parts of a snapshot: what several ranks have written, any number of them reads; and it counts only when it is complete."""

import shutil

import pytest
import torch

from dash_exp.core.errors import UserError
from dash_exp.distributed.ranks import Ranks
from dash_exp.distributed.world import RankLostError
from dash_exp.models import sharded
from dash_exp.results import run_folder
from dash_exp.training import snapshot_file, snapshot_parts
from dash_exp.training.snapshot_parts import Parts

REST = {"step": 3, "rows": [{"step": 0}]}
TIED = torch.arange(10.0).view(5, 2)
WEIGHTS = {"embed": TIED, "head": TIED, "norm": torch.tensor([7.0]), "scale": torch.tensor(2.0)}
SHAPES = {name: tensor.shape for name, tensor in WEIGHTS.items()}


def test_rows_are_divided_as_torch_divides_them():
    for count, size in ((5, 2), (5, 4), (1, 3), (8, 4), (0, 2)):
        chunks = list(torch.arange(count).chunk(size)) if count else []
        chunks += [torch.empty(0)] * (size - len(chunks))
        assert [list(range(count))[sharded.rows_of(count, i, size)] for i in range(size)] == [c.tolist() for c in chunks]


def write_part(run_dir, index, size, token="0" * 16):
    """One rank's rows of `WEIGHTS`, of which the first has the whole."""
    ranks = Ranks(index, size)
    folder = snapshot_parts.folder_of(run_dir, 3, token)
    mine = WEIGHTS if index == 0 else {name: sharded.own_rows(t, index, size) for name, t in WEIGHTS.items()}
    snapshot_parts.write(folder, snapshot_parts.older({2: mine}, SHAPES, ranks), ranks)
    return folder


@pytest.fixture
def complete(tmp_path):
    """The snapshot that two ranks have written."""
    write_part(tmp_path, 1, 2)
    assert snapshot_parts.complete(write_part(tmp_path, 0, 2), REST, Ranks(0, 2))
    (folder,) = run_folder.snapshots(tmp_path)
    return folder


@pytest.mark.parametrize("size", [1, 2, 3])
def test_two_ranks_write_what_any_number_reads(complete, size):
    names = snapshot_file.read(complete)["parts"]
    for index in range(size):
        found = Parts(complete, names, Ranks(index, size)).older()[2]
        for name, tensor in WEIGHTS.items():
            assert torch.equal(found[name], tensor if index == 0 else sharded.own_rows(tensor, index, size)), name
    whole = Parts(complete, names, Ranks()).joined({**REST, "copies": {}})
    assert whole["rows"] == REST["rows"]
    assert whole["copies"][2]["embed"] is whole["copies"][2]["head"]


def test_a_rank_opens_the_parts_that_have_its_rows_alone(complete):
    parts = Parts(complete, snapshot_file.read(complete)["parts"], Ranks(1, 2))
    (complete / parts._files[0]).unlink()
    # of 5 rows the second rank has two
    assert torch.equal(parts.own_rows(("copies", 2, "embed")), TIED[3:])


def test_it_counts_when_all_parts_are_there(tmp_path, complete):
    """A rank that goes away meanwhile leaves the snapshot before it as it was."""

    class Lost(Ranks):
        def look(self):
            raise RankLostError("rank 1 of 2", "ended", "")

    folder = write_part(tmp_path, 0, 2, "1" * 16)
    with pytest.raises(RankLostError):
        snapshot_parts.complete(folder, REST | {"step": 4}, Lost(0, 2))
    assert run_folder.snapshots(tmp_path) == [complete]
    assert list(complete.parent.iterdir()) == [complete]


def test_a_part_that_does_not_come_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Ranks, "look", lambda _: None)
    monkeypatch.setattr(snapshot_parts, "PATIENCE_S", 0.0)
    with pytest.raises(UserError, match=r"rank\(s\) 1, 2 have not written their part"):
        snapshot_parts.complete(write_part(tmp_path, 0, 3), REST, Ranks(0, 3))


def test_the_first_does_not_wait_for_a_part_that_could_not_be_written(tmp_path, monkeypatch):
    folder = write_part(tmp_path, 0, 2)

    def full(*_):
        raise OSError(28, "x")

    monkeypatch.setattr(snapshot_file, "save", full)
    with pytest.raises(OSError):
        write_part(tmp_path, 1, 2)
    assert not snapshot_parts.complete(folder, REST, Ranks(0, 2))
    assert run_folder.snapshots(tmp_path) == []


def test_a_rank_whose_folder_another_one_has_removed_leaves_it_to_that_one_to_say_why(tmp_path, monkeypatch):
    """On a full disk its removal makes room: what then fails here is only that the folder is not there."""
    save = snapshot_file.save

    def removed(state, file):
        save(state, file)
        shutil.rmtree(tmp_path)  # by the other rank

    monkeypatch.setattr(snapshot_file, "save", removed)
    folder = write_part(tmp_path, 0, 2)
    assert not snapshot_parts.complete(folder, REST, Ranks(0, 2))


@pytest.mark.parametrize("index", [0, 1])
def test_damage_is_found_in_every_part(complete, index):
    names = snapshot_file.read(complete)["parts"]
    assert snapshot_parts.damage(complete, names, Ranks()) == ""
    contents = bytearray((complete / names[index]).read_bytes())
    contents[len(contents) // 2] ^= 1
    (complete / names[index]).write_bytes(contents)
    assert snapshot_parts.damage(complete, names, Ranks()).startswith(f"{names[index]}: its contents do not match")
    (complete / names[index]).unlink()
    assert snapshot_parts.damage(complete, names, Ranks()).startswith(f"{names[index]}: ")


def test_two_snapshots_are_kept_and_what_was_not_finished_goes(tmp_path, complete):
    for step in (4, 5):
        write_part(tmp_path, 1, 2, str(step) * 16)
        snapshot_parts.complete(write_part(tmp_path, 0, 2, str(step) * 16), REST | {"step": step}, Ranks(0, 2))
    snapshot_file.remove_old(tmp_path)
    write_part(tmp_path, 0, 2, "a" * 16)
    (complete.parent / "step_00007.new").touch()
    snapshot_file.remove_unfinished(tmp_path)
    assert [folder.name[:10] for folder in run_folder.snapshots(tmp_path)] == ["step_00005", "step_00004"]
    assert len(list(complete.parent.iterdir())) == 2


class Other(Ranks):
    """The second rank; what the first sends it is given."""

    def __init__(self, name):
        super().__init__(1, 2)
        self.from_first = lambda _: name
        self.gather = lambda value: [True, value]


def test_ranks_know_whether_they_share_a_disk(tmp_path):
    (tmp_path / "probe").mkdir()
    assert snapshot_parts.on_one_disk(tmp_path, Other("probe"))
    assert not snapshot_parts.on_one_disk(tmp_path / "elsewhere", Other("probe"))
    assert not snapshot_parts.on_one_disk(tmp_path, Other(""))  # the first could not make it
    shutil.rmtree(tmp_path / "probe")
    assert snapshot_parts.on_one_disk(tmp_path, Ranks())
    assert not list(tmp_path.iterdir())
