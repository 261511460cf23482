"""A snapshot of a sharded policy, in parts: each rank writes the rows that it has, and reads those that it needs.

    checkpoints/resume/step_00012-DIGEST/    a folder gets this name when all is in it, and counts from then on
        part-0-of-2-DIGEST.pt                by rank 0: its rows of weights, moments and older weights
        part-1-of-2-DIGEST.pt                by rank 1
        rest-DIGEST.pt                       by the first rank: all else, and the names of the parts

DIGEST is the beginning of a file's SHA-256, of the folder that of `rest`. Tensors are divided by rows, their first dimension,
as FSDP divides them. Parts are mapped into memory, and a rank reads its rows from those that have some of them, so the number
of ranks may change.

torch.distributed.checkpoint does the same work. It is not used because its file `.metadata` is a pickle, which may run code
when it is loaded. No file of a run folder may do that: each of these is read with `weights_only=True`.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from dash_exp.core.errors import UserError
from dash_exp.core.words import first_line
from dash_exp.distributed.ranks import Ranks
from dash_exp.models import adapter, sharded
from dash_exp.results.run_folder import SNAPSHOTS
from dash_exp.training.snapshot_file import UNFINISHED, State, check, digest_in, stem, write_named

PATIENCE_S = 3600.0  # of the first rank, after its own part is written: for the parts of the others
LOOK_S = 0.2  # between two looks whether they are there

Key = tuple[str | int, ...]  # the keys that lead to a tensor in nested dicts
Piece = tuple[tuple[int, ...], int, Tensor]  # the shape of the whole tensor, the first row that is here, and the rows
Copies = Mapping[int, Mapping[str, Tensor]]  # of `sampling.refresh`


def on_one_disk(run_dir: Path, ranks: Ranks) -> bool:
    """Whether each rank can write into the first rank's run folder, and what is there is the same. Every rank must call it."""
    name = f".ranks-{secrets.token_hex(8)}" if ranks.first else ""
    try:
        if ranks.first:
            (run_dir / name).mkdir(parents=True)
    except OSError:
        name = ""
    name = ranks.from_first(name)
    if not name:
        return False
    try:
        (run_dir / name / str(ranks.index)).touch()  # not where there is no such folder
        found = True
    except OSError:
        found = False
    everywhere = all(ranks.gather(found))
    if ranks.first:
        shutil.rmtree(run_dir / name, ignore_errors=True)
    return everywhere


# --- writing -----------------------------------------------------------------------------------------------------------


def folder_of(run_dir: Path, step: int, token: str) -> Path:
    """Where the parts of a new snapshot are written. `token`: no other snapshot has it."""
    return run_dir / SNAPSHOTS / f"{stem(step)}-{token}{UNFINISHED}"


def divided(state: Mapping[str, Any], ranks: Ranks, copy: bool) -> tuple[dict[Key, Piece], dict[str, Any]]:
    """This rank's rows of the sharded tensors in nested dicts, and all else in them. `copy`: in CPU memory, so that nothing
    changes with the policy.
    """
    found: dict[int, Tensor] = {}  # by tensor: tied weights stay tied
    pieces: dict[Key, Piece] = {}
    for key, tensor in _sharded(state):
        if id(tensor) not in found:
            rows = sharded.own_rows(tensor, ranks.index, ranks.size)
            found[id(tensor)] = rows.to("cpu", copy=True) if copy else rows
        pieces[key] = _piece(tensor.shape, found[id(tensor)], ranks)
    return pieces, sharded.whole(_without_sharded(state), copy=copy)


def older(copies: Copies, shapes: Mapping[str, torch.Size], ranks: Ranks) -> dict[Key, Piece]:
    """This rank's rows of older weights, of which the first rank has the whole, the others their rows. `shapes`: by name."""
    found: dict[int, Tensor] = {}
    for tensor, shape in ((tensor, shapes[name]) for weights in copies.values() for name, tensor in weights.items()):
        if tensor.shape == shape and id(tensor) not in found:
            found[id(tensor)] = sharded.own_rows(tensor, ranks.index, ranks.size).clone()  # or torch saves the whole
    return {
        ("copies", step, name): _piece(shapes[name], found.get(id(tensor), tensor), ranks)
        for step, weights in copies.items()
        for name, tensor in weights.items()
    }


def write(folder: Path, pieces: Mapping[Key, Piece], ranks: Ranks) -> None:
    """Write this rank's part. Where that fails the folder goes, so that the first rank does not wait for it. Where it has gone
    meanwhile another rank has failed and says why: nothing is raised here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_named(dict(pieces), folder, f"part-{ranks.index}-of-{ranks.size}")
    except BaseException as error:
        if isinstance(error, FileNotFoundError) and not folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        raise


def complete(folder: Path, rest: State, ranks: Ranks) -> bool:
    """When the parts of all ranks are there, the first writes the rest, and the snapshot counts. False where a rank could not
    write its part: it says why itself. Raises what else ends the wait: RankLostError, and UserError after an hour.
    """
    try:
        until = time.monotonic() + PATIENCE_S
        while len(written := _written(folder)) < ranks.size:
            if not folder.exists():
                return False
            ranks.look()
            if time.monotonic() > until:
                late = ", ".join(str(i) for i in range(ranks.size) if i not in written)
                wrong = f"rank(s) {late} have not written their part within {PATIENCE_S / 60:.0f} min"
                raise UserError(str(folder), wrong, "Look at the disk of their machine; resume_every=null writes no snapshots")
            time.sleep(LOOK_S)
        file = write_named({**rest, "parts": [written[i] for i in range(ranks.size)]}, folder, "rest")
        folder.rename(folder.with_name(f"{stem(rest['step'])}-{digest_in(file)}"))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return True


def _written(folder: Path) -> dict[int, str]:
    """The names of the parts that are there, by rank."""
    return {int(file.name.split("-")[1]): file.name for file in folder.glob("part-*.pt")}


def _piece(shape: Sequence[int], rows: Tensor, ranks: Ranks) -> Piece:
    start = sharded.rows_of(shape[0] if len(shape) else 1, ranks.index, ranks.size).start
    return tuple(shape), start, rows


def _sharded(state: Mapping[str, Any], before: Key = ()) -> Iterator[tuple[Key, DTensor]]:
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _sharded(value, (*before, key))
        elif isinstance(value, DTensor):
            yield (*before, key), value


def _without_sharded(state: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in state.items() if not isinstance(value, DTensor)}
    return {key: _without_sharded(value) if isinstance(value, Mapping) else value for key, value in rest.items()}


# --- reading -----------------------------------------------------------------------------------------------------------


def damage(folder: Path, names: Sequence[str], ranks: Ranks) -> str:
    """What is wrong with a part, "" where all are as they were written. Each rank looks at a share of them."""

    def of(name: str) -> str:
        try:
            with (folder / name).open("rb") as contents:
                check(folder / name, contents)
        except (OSError, ValueError) as error:
            return f"{name}: {first_line(str(error))}"
        return ""

    return next(filter(None, ranks.join_shares([of(name) for name in ranks.share(names)])), "")


class Parts:
    """The parts of a complete snapshot, for rank `ranks.index`. What is not read takes no memory."""

    def __init__(self, folder: Path, names: Sequence[str], ranks: Ranks) -> None:
        self.ranks = ranks
        self._files = [folder / name for name in names]
        self._open: dict[int, Mapping[Key, Piece]] = {}
        near = ranks.index * len(names) // ranks.size
        self._order = sorted(range(len(names)), key=lambda i: abs(i - near))  # most likely the first has all that is needed

    def _part(self, index: int) -> Mapping[Key, Piece]:
        if index not in self._open:
            self._open[index] = torch.load(self._files[index], map_location="cpu", mmap=True, weights_only=True)
        return self._open[index]

    def keys(self, *before: str | int) -> list[Key]:
        """The keys of the tensors inside these dicts. Each part has rows of every tensor, or none of its rows."""
        return [key for key in self._part(self._order[0]) if key[: len(before)] == before]

    def _shape(self, key: Key) -> tuple[int, ...]:
        return self._part(self._order[0])[key][0]

    def whole(self, *keys: Key) -> Iterator[tuple[Key, Tensor]]:
        """The whole tensors, in CPU memory. Tied weights, which are in each part once, stay tied."""
        found: dict[Any, Tensor] = {}
        for key in keys:
            pieces = [self._part(index)[key] for index in self._order]
            shape, _, rows = pieces[0]
            place = (shape, *(rows.data_ptr() for _, _, rows in pieces))
            if place not in found:
                found[place] = torch.empty(shape, dtype=rows.dtype)
                self.read(key, torch.atleast_1d(found[place]), 0)
            yield key, found[place]

    def read(self, key: Key, into: Tensor, start: int) -> None:
        """Copy the rows of a tensor from `start` on into `into`."""
        missing = len(into)
        for index in self._order:
            if missing == 0:
                return
            _, first, rows = self._part(index)[key]
            low, high = max(start, first), min(start + len(into), first + len(rows))
            if low < high:
                into[low - start : high - start].copy_(rows[low - first : high - first])
                missing -= high - low
        if missing:
            raise ValueError(f"no part has all rows of {key}")

    def own_rows(self, key: Key, device: torch.device | str = "cpu") -> Tensor:
        """The rows of a tensor that this rank has."""
        shape, _, rows = self._part(self._order[0])[key]
        own = sharded.rows_of(shape[0] if shape else 1, self.ranks.index, self.ranks.size)
        found = torch.empty((own.stop - own.start, *shape[1:]), dtype=rows.dtype, device=device)
        self.read(key, found, own.start)
        return found

    # --- of a sharded policy: each rank its rows ----------------------------------------------------------------------------

    def put_back(self, policy: PreTrainedModel, rest: Mapping[str, Tensor]) -> None:
        """Put the weights into a sharded policy. `rest`: those that are not sharded."""
        adapter.check_names(policy, [*(str(key[1]) for key in self.keys("policy")), *rest])
        with torch.no_grad():
            for name, tensor in adapter.trained(policy, keep_vars=True).items():
                if isinstance(tensor, DTensor):
                    own = sharded.rows_of(tensor.shape[0], self.ranks.index, self.ranks.size)
                    self.read(("policy", name), tensor.to_local(), own.start)
                else:
                    tensor.copy_(rest[name])

    def moments(self, index: int, parameter: Tensor) -> dict[str, Tensor]:
        """What the optimizer keeps of its parameter number `index`, divided as the parameter is."""
        found: dict[str, Tensor] = {}
        for key in self.keys("optimizer", "state", index):
            if isinstance(parameter, DTensor) and self._shape(key) == tuple(parameter.shape):
                found[str(key[-1])] = sharded.from_rows(self.own_rows(key, parameter.device), parameter)
            else:
                ((_, found[str(key[-1])]),) = self.whole(key)
        return found

    def older(self) -> dict[int, dict[str, Tensor]]:
        """Older weights, as `older` took them: on the first rank the whole, on the others their rows."""
        keys = self.keys("copies")
        found: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self.whole(*keys) if self.ranks.first else ((key, self.own_rows(key)) for key in keys):
            found.setdefault(int(key[1]), {})[str(key[2])] = tensor
        return found

    # --- of any policy ------------------------------------------------------------------------------------------------------

    def joined(self, rest: State) -> State:
        """The snapshot as it would be in one file, in CPU memory."""
        state: dict[str, Any] = _copied_dicts(rest)
        for key, tensor in self.whole(*self.keys()):
            inside: Any = state
            for each in key[:-1]:
                inside = inside.setdefault(each, {})
            inside[key[-1]] = tensor
        return state


def _copied_dicts(state: Any) -> Any:
    return {key: _copied_dicts(value) for key, value in state.items()} if isinstance(state, Mapping) else state
