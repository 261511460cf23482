"""What Hydra finds wrong, in one line: a name that is written wrongly, with the nearest one, and text that it cannot read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError

from dash_exp.core.errors import UserError


def in_one_line(error: HydraException) -> UserError | None:
    """The message for the user; None where Hydra's own is clear."""
    if isinstance(error, MissingConfigException):
        return _no_file(error)
    if isinstance(error, OverrideParseException) and not error.override.isascii():
        return _not_ascii(error.override)
    if isinstance(cause := error.__cause__ or error.__context__, ConfigKeyError) and cause.object_type is not dict:
        return _no_key(cause)
    return _with_or_without_plus(str(error))


def _with_or_without_plus(message: str) -> UserError | None:
    """Of an option with the place where it goes, such as `reward@data.tests.NAME.reward=math`."""
    if found := re.match(r"Could not override '(\w+@[^']+)'", message):
        return UserError(found[1], "nothing is chosen there so far", f"Write +{found[1]}=NAME")
    if found := re.match(r"Multiple values for (\w+@\S+)\. |(\w+@\S+) appears more than once", message):
        place = found[1] or found[2]
        return UserError(f"+{place}", "an option is chosen there already", f"Write {place}=NAME, without the +")
    return None


def _no_file(error: MissingConfigException) -> UserError | None:
    missing = str(error.missing_cfg_file)
    if "Cannot find primary config" in str(error):
        by_user = re.search(r"provider=command-line, path=file://(.+)", str(error))
        if not by_user:
            return UserError(f"-cn {missing}", "there is no such file in conf/", "Name its folder as well: -cd sweeps")
        files = [file.stem for file in Path(by_user[1]).glob("*.yaml")]
        return UserError(f"-cn {missing}", f"there is no such file in {by_user[1]}", _choose(missing, files))
    if error.options is None:
        return None
    group, _, name = missing.rpartition("/")
    if group == "kl":
        right = "kl takes a number of at least 0, such as kl=0 or kl=0.04, or the name of a schedule: adaptive, cosine, linear"
    elif missing == "hydra/sweeper/optuna":
        right = "Its package is not installed: run `pip install -e '.[optuna]'`"
    else:
        right = _choose(name, error.options)
    return UserError(f"{group}={name}", f"there is no file {missing}.yaml in conf/ or in a folder given with -cd", right)


def _not_ascii(override: str) -> UserError:
    key, _, value = override.partition("=")
    quoted = ",".join(part if part.isascii() else f"'{part}'" for part in value.split(","))
    return UserError(override, "has letters that Hydra reads only inside quotes", f'Write "{key}={quoted}"')


def _no_key(error: ConfigKeyError) -> UserError:
    key = str(error.full_key)
    name = key.rpartition(".")[2]
    names = [str(known) for known in getattr(error.object_type, "__dataclass_fields__", ())]
    return UserError(key, "there is no such setting", _choose(name, names))


def _choose(wrong: str, names: Iterable[str]) -> str:
    names = sorted(names)
    close = get_close_matches(wrong, names, n=1)
    return (f"Did you mean {close[0]}? " if close else "") + f"There is {', '.join(names)}"
