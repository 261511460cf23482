"""The problems that cells were tested on, by the digests that their runs recorded (`data.digests`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # see `cells`
    import pandas as pd

DIGEST = "digest/"  # in front of the name of a set in result.json: `digest/data.tests.in_dist`

Changed = frozenset[tuple[str, str]]  # (test set, id of the problem)


def differ(before: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """The names of the sets whose digests are not what they were. What was not recorded counts as the same."""
    return [name for name, digest in now.items() if (before or {}).get(name, digest) != digest]


def recorded(result: Mapping[str, Any]) -> dict[str, str]:
    """The digests in the contents of `result.json`, by the name of the set."""
    return {key.removeprefix(DIGEST): value for key, value in result.items() if key.startswith(DIGEST)}


def sets_that_differ(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the sets for which these contents of `result.json` have different digests: `data.tests.in_dist`.

    Runs of earlier versions recorded no digest; they are not compared.
    """
    names = [name for name, _ in {pair for result in results for pair in recorded(result).items()}]
    return sorted({name for name in names if names.count(name) > 1})


def changed_problems(problems: Sequence[pd.DataFrame]) -> Changed:
    """The problems that have the same id and different digests in two of these contents of `problems.csv`."""
    import pandas as pd

    known = [rows for rows in problems if "digest" in rows]
    if not known:
        return frozenset()
    counts = pd.concat(known).groupby(["test", "problem"])["digest"].nunique()
    return frozenset(counts.index[counts > 1])


def told_apart(rows: pd.DataFrame, changed: Changed) -> pd.DataFrame:
    """The contents of `problems.csv` with the digest as a part of the id of each problem in `changed`: it is paired with no
    other problem of that id.
    """
    if not changed or "problem" not in rows:
        return rows
    digests = rows["digest"] if "digest" in rows else ["unknown"] * len(rows)
    names = [
        f"{problem} ({digest})" if (test, problem) in changed else problem
        for test, problem, digest in zip(rows["test"], rows["problem"], digests, strict=True)
    ]
    return rows.assign(problem=names)
