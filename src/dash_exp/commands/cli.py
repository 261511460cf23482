"""Around Hydra's main: takes the user's command line, and prints one clear message where something is wrong."""

from __future__ import annotations

import difflib
import errno
import inspect
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError
from yaml.reader import ReaderError

import dash_exp.commands.hydra_setup  # noqa: F401  the functions that the configuration calls
from dash_exp.commands import hydra_errors
from dash_exp.commands.encoding import not_utf_8
from dash_exp.core import files
from dash_exp.core.errors import UserError
from dash_exp.core.process import INTERRUPTED, importing, leaving_on_sigterm, outlast_readers
from dash_exp.distributed import place
from dash_exp.settings import credentials, renamed
from dash_exp.settings.overrides import number_of_kl
from dash_exp.settings.validate import validate

# By the error number of the file system: what is wrong, and what to do.
FILE_SYSTEM = files.TROUBLES | {
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter name=..., or swept values with shorter names"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
        ("there is a file where a folder should be, or the reverse", "Choose another name=..., or move it away"),
    ),
}


def launch(main: Callable[[], None], follow: Callable[..., object] | None = None) -> None:
    """Run a command. With `follow`, where torchrun or srun has started several processes of it, the first does what `main`
    says, and the others `follow` it in each run (see `rank.taking_part`).
    """
    if follow is None or place.size() == 1:
        _launch(main)
        return
    with importing():
        from dash_exp.commands import rank
    try:
        with rank.taking_part(follow):
            _launch(main)
    except UserError as error:  # of the meeting with the others
        sys.exit(f"error: {error}")


def _launch(main: Callable[[], None]) -> None:
    """Run Hydra's `main`. Errors that the user can fix end with one message and status 1, without a traceback.

    The same holds for errors of the file system, wherever they are raised: a full disk needs no traceback.

    HYDRA_FULL_ERROR=1 asks for the traceback. A bug of the program always shows it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what LANG=C cannot print is printed as \u2212, and does not end the run
            stream.reconfigure(errors="backslashreplace")
    outlast_readers()
    asked = os.environ.get("HYDRA_FULL_ERROR", "")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints the exception and exits by itself
    logging.raiseExceptions = False  # a full disk is reported once, not by every line of the log as well
    sys.argv[1:] = number_of_kl(sys.argv[1:])
    try:
        with leaving_on_sigterm():
            credentials.refuse((argument.partition("=")[0], argument) for argument in sys.argv[1:])
            main()
    except KeyboardInterrupt:  # before training, or between the cells of a sweep
        sys.exit(INTERRUPTED)
    except (UserError, HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        if asked == "1" or not _users(error):
            raise
        sys.exit(f"error: {explain(error)}")
    finally:
        os.environ["HYDRA_FULL_ERROR"] = asked


def show_plan(config: DictConfig) -> None:
    """Print the plan that `plan=true` asks for, and exit, with status 0 where the run fits. For `sweep.ledger.Ledger`."""
    HydraConfig.instance().set_config(config)
    cfg = config.copy()
    with open_dict(cfg):
        del cfg["hydra"]
    try:
        validate(cfg)
        with importing():
            from dash_exp.planning import advice
        advice.show(cfg, composed(["rollout=vllm_server"]).rollout.sampler)
    except Exception as error:  # Hydra would turn it into a warning
        if _users(error):
            sys.exit(f"error: {explain(error)}")
        traceback.print_exc()
        sys.exit(1)
    sys.exit(0)


def _users(error: Exception) -> bool:
    """Whether the user can fix it. Other errors of these types are bugs of the program."""
    if isinstance(error, HydraException):  # some of which are also OSError
        return True
    if isinstance(error, OSError):
        return error.errno in FILE_SYSTEM
    if isinstance(error, UnicodeDecodeError):
        return _not_utf_8() is not None
    if isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException):  # some of which are both
        return "Config group override" in str(error)
    return True


def explain(error: Exception) -> str:
    """The message for the user: the cause that the user can fix, in one piece."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        assert error.errno is not None
        return str(UserError(str(error.filename or "a file"), *FILE_SYSTEM[error.errno]))
    if isinstance(error, UnicodeDecodeError | ReaderError) and (told := _not_utf_8()):
        return str(told)
    if isinstance(error, YAMLError):
        return " ".join(f"a file of the configuration is not valid YAML: {error}".split())
    if isinstance(error, InstantiationException):
        return str(error).strip() + _renamed(str(error))
    if isinstance(error, HydraException) and (said := hydra_errors.in_one_line(error)):
        return str(said)
    message = str(error).splitlines()[0]
    if "Config group override" in message:
        return (
            "a group takes the name of a file in its folder of conf/, not a number or null. Only kl takes numbers: kl=0,0.04."
        )
    if found := re.match(r"Multiple values for ([^\s.]+)\.", message):
        return f"+{found[1]}: an option is chosen there already. Write {found[1]}=NAME, without the +."
    if "Ambiguous value" in message:
        return f"{message} Several values make a sweep: add -m."
    if found := re.match(r"Could not override '(.+?)'", message):
        advice = _advice(found[1], getattr(error, "__notes__", None))
        return f"{found[1]}: there is no such setting.{advice} `python train.py --cfg job` shows them all."
    own = str(error).partition("\nConfig search path:")[0]
    return "\n".join(dict.fromkeys([*own.splitlines(), *str(error.__cause__ or "").splitlines()]))


def help_or_arguments(doc: str | None) -> list[str]:
    """The arguments of a command. Without any, or where help is asked for, prints the docstring and exits."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(doc)
        sys.exit(0 if arguments else 2)
    return arguments


def composed(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of train.py with these overrides, outside of Hydra's main or inside it (when a sweep ends)."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return compose("config", overrides=list(overrides))
    except HydraException as error:
        error.add_note("\n".join(overrides))  # a command may add some to the user's: for `_advice`
        raise
    finally:
        GlobalHydra.instance().hydra = running


def settings(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration with these overrides as plain values, references resolved. Raises what Hydra and OmegaConf raise."""
    container = OmegaConf.to_container(composed(overrides), resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def conf_folder() -> Path:
    """The folder conf/: next to the program that was started, in the checkout around the current folder, or in the checkout of
    this package.
    """
    here = Path.cwd()
    for folder in (Path(sys.argv[0]).resolve().parent, here, *here.parents, Path(__file__).parents[3]):
        if (folder / "conf" / "config.yaml").is_file():
            return folder / "conf"
    raise UserError(str(here), "is not inside a checkout with conf/config.yaml", "Run the command in the repository")


def _not_utf_8() -> UserError | None:
    """The settings file that is not UTF-8, in conf/ or in a folder that the command names."""
    given = (Path(argument.rpartition("=")[2]) for argument in sys.argv[1:])
    return not_utf_8([conf_folder(), *(folder for folder in given if folder.is_dir())])


def _renamed(message: str) -> str:
    """A sentence on the first old name in the message of Hydra's error, as of a callback in the user's own configuration."""
    old = next((name for name in renamed.NAMES if f"'{name}'" in message), None)
    return f"\n{old} is the name of an earlier version. Write {renamed.NAMES[old]}." if old else ""


def _advice(key: str, noted: Sequence[str] | None) -> str:
    """What to write instead of a setting that there is not: a sentence with a space before it, or none. `noted`: the overrides,
    by `composed`; without it those of the command line.
    """
    section, _, name = key.rpartition(".")
    try:
        cfg, part = composed(_chosen(noted[0].splitlines() if noted else sys.argv[1:])), ""
        part = OmegaConf.select(cfg, f"{section}._target_") or "" if section else ""
    except Exception:  # another argument may be wrong, too: which parts are chosen is not known then
        try:
            cfg, part = composed(), ""
        except Exception:  # the configuration itself may be wrong, and the message is about this one setting
            return ""
    known = _keys(OmegaConf.to_container(cfg))
    if key in known:
        return " It is a setting of one option of this sweep, and not of another."
    known = [k for k in known if not key.startswith(f"{k}.") and not k.endswith("_")]
    beside = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section]
    close = difflib.get_close_matches(name, beside, n=1, cutoff=0.75) or [k for k in beside if k.startswith(name)]
    if close:
        return f" Did you mean {section}.{close[0]}?" if section else f" Did you mean {close[0]}?"
    takes = _takes(part, name) if part else False
    if takes:
        return f" {part} takes it: write +{key}=..."
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    advice = f" Did you mean {close[0]}?" if close else ""
    if takes is None:
        return f"{advice} {part} may hand it on to what it builds: then write +{key}=..."
    return advice + (f" {part} does not take it." if part else "")


def _chosen(overrides: Sequence[str]) -> list[str]:
    """What overrides choose of groups, such as `algo=grpo`, and of classes; of several values the first."""
    pairs = [argument.lstrip("+").split("=", 1) for argument in overrides if "=" in argument]
    return [
        f"{key}={value.split(',')[0]}"
        for key, value in pairs
        if (key.isidentifier() and (conf_folder() / key).is_dir()) or key.endswith("._target_")
    ]


def _takes(part: str, name: str) -> bool | None:
    """Whether a class or function has an argument of this name; None where it takes any, or cannot be looked up."""
    try:
        parameters = inspect.signature(get_object(part)).parameters.values()
    except Exception:
        return None
    if any(p.name == name and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters):
        return True
    return None if any(p.kind == p.VAR_KEYWORD for p in parameters) else False


def _keys(tree: object, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return []
    return [key for k, v in tree.items() for key in (f"{prefix}{k}", *_keys(v, f"{prefix}{k}."))]
