"""Every command that README and docs/ show composes and validates.

Files that a page shows with a title (```yaml title="conf/reward/x.yaml") exist for the commands of that page.
"""

import importlib.machinery
import importlib.util
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import CONF, ROOT, composed
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dash_exp.commands import evaluate, grade, reward_model, serve
from dash_exp.commands.evaluate.command import Command as Evaluation
from dash_exp.core.errors import UserError
from dash_exp.models import loading
from dash_exp.report import __main__ as report
from dash_exp.settings.overrides import number_of_kl
from dash_exp.settings.validate import validate

pytestmark = pytest.mark.filterwarnings("ignore:\\s*'hydra/launcher")
SWEEPS = [file.stem for file in (ROOT / "sweeps").glob("*.yaml")]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Files that a page describes in a sentence, by page.
DESCRIBED = {
    "README.md": {"conf/reward/short.yaml": "_target_: my_rewards.Short\n"},
    "CONTRIBUTING.md": {"conf/algo/NAME.yaml": "# @package _global_\ndefaults: [no_gf, _self_]\nalgo: {name: NAME}\n"},
    "docs/how-to/own-reward.md": {"mine/reward/concise.yaml": "_target_: my_concise.ConciseReward\n"},
}
# What a page writes in place of a run folder, and of a folder with a model.
RUNS = ("RUN", "outputs/arithmetic-tiny/TIME")
MODELS = ("MODEL", "/data/models/my-model", "src/dash_exp/assets/tiny")

STARTS = r"(?:[A-Z_]+=\S+ )*(?:sbatch|srun|torchrun|make|pip|python3?|\.venv/bin/(?:python|pip)) "
STARTERS = ("sbatch", "srun", "torchrun")
FENCED = re.compile(r"^([ ]*)```(\w*)([^\n]*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


# --- what a page shows -------------------------------------------------------------------------------------------------


def commands(text: str) -> list[str]:
    """The commands in code blocks and between backticks, each on one line, in their order and once. A program's name alone is
    none.
    """
    blocks = [body for _, language, _, body in FENCED.findall(text) if language in ("", "bash", "sh", "console")]
    rest = FENCED.sub("", text)
    blocks += re.findall(r"^ {4}\S.*(?:\n.+)?", rest, re.MULTILINE)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines += [span.strip() for span in re.findall(r"`([^`\n]+)`", re.sub(r"^ {4}\S.*", "", rest, flags=re.MULTILINE))]
    return list(dict.fromkeys(line for line in lines if re.match(STARTS, f"{line} ") and line not in STARTERS))


def files(page: Path) -> dict[str, str]:
    """The files that a page shows, by the title of their block."""
    blocks = FENCED.findall(page.read_text(encoding="utf-8"))
    titled = {found[1]: body for _, _, more, body in blocks if (found := re.search(r'title="([^"]+)"', more))}
    return titled | DESCRIBED.get(page.relative_to(ROOT).as_posix(), {})


# --- checks ------------------------------------------------------------------------------------------------------------


def check(command: str) -> None:
    """Raise an error where a command would be refused. The current folder is `workplace`."""
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    program, *rest = (word for word in words if word != "...")
    program = program.rpartition("/")[2]
    if program == "sbatch":
        check(rest[rest.index("--wrap") + 1])
    elif program in ("srun", "torchrun"):
        if rest[-2:] == ["--pty", "bash"]:
            return
        script = next(i for i, word in enumerate(rest) if word.endswith(".py"))
        check(shlex.join(["python", *rest[script:]]))
    elif program == "make":
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {*rest} <= {*targets}, f"make has no {rest}"
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = ",".join(re.findall(r"^\.\[(.*)\]$", rest[-1]))
        assert {*wanted.split(",")} <= {*extras}, f"there is no extra {wanted}"
    elif rest[:1] == ["train.py"]:
        check_train(rest[1:])
    elif rest[0] == "-m":
        check_module(rest[1], rest[2:])
    elif rest:
        check_script(*rest)


def check_train(arguments: list[str]) -> None:
    """`python train.py ...`: composed and validated, a sweep cell by cell for one seed."""
    name, folders, overrides, several = "config", [], [], False
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word in ("-cn", "-cd", "--cfg"):
            value = rest.pop(0)
            name = value if word == "-cn" else name
            folders += [Path(value).resolve()] if word == "-cd" else []
        elif word.startswith("-"):
            assert word in ("-m", "--multirun", "--resolve", "--help"), f"train.py has no {word}"
            several = several or word in ("-m", "--multirun")
        else:
            overrides.append(word)
    for folder in folders:
        assert folder.is_dir(), f"there is no folder {folder}"
    if name in SWEEPS and folders == [Path("sweeps").resolve()] and overrides in ([], ["+scale=paper"], ["+scale=smollm2"]):
        return  # test_config.py has all of their cells
    parsed = OverridesParser.create().parse_overrides(number_of_kl(overrides))
    fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    swept = {o.key_or_group: str(o.input_line) for o in parsed if o.is_sweep_override()}
    if name != "config":
        main = composition(name, folders, fixed, return_hydra_config=True)
        several = several or "mode" in main.hydra
        swept = {str(key): f"{key}={value}" for key, value in (main.hydra.sweeper.get("params") or {}).items()} | swept
    assert several or not swept, "several values need -m"
    choices = [value for key, value in swept.items() if key != "seed" and "interval(" not in value]
    cells = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(number_of_kl(choices)), None)[0]
    for cell in cells[: 1 if name in SWEEPS else None]:
        validate(composition(name, folders, [*fixed, *cell]))


def composition(name: str, folders: list[Path], overrides: list[str], **how: bool) -> DictConfig:
    conf = Path("conf").resolve()
    if (conf, name, folders) == (CONF, "config", []):
        return composed(*overrides)
    places = [*folders, conf]
    first = next((place for place in places if (place / f"{name}.yaml").is_file()), conf)
    search = f"hydra.searchpath=[{','.join(f'file://{place}' for place in places if place != first)}]"
    with initialize_config_dir(str(first), version_base="1.3"):
        return compose(name, [search, *overrides], **how)


def check_module(module: str, arguments: list[str]) -> None:
    """`python -m MODULE ...`: the module's own check of its command line and settings."""
    if not arguments or "--help" in arguments:
        assert importlib.util.find_spec(module), f"there is no {module}"
    elif module == "pytest":
        for path in (argument for argument in arguments if argument.startswith("tests")):
            assert (ROOT / path).exists(), f"there is no {path}"
    elif module == "dash_exp.report":
        report.parse(arguments)
    elif module == "dash_exp.serve":
        serve.configuration(serve.parse(arguments))
    elif module == "dash_exp.reward_model":
        command = reward_model.parse(arguments)
        evaluate.configured(Evaluation(command.target, command.overrides))
    elif module == "dash_exp.grade":
        grade.configured(grade.parse(arguments))
    else:
        assert module == "dash_exp.evaluate", f"there is no {module}"
        evaluate.configured(evaluate.parse(arguments))


def check_script(script: str, *arguments: str) -> None:
    """`python SCRIPT ...`: a script of the repository, or one that the page shows; its flags stand in it."""
    if script.endswith("..."):  # any of them
        return
    file = next((folder / script for folder in (Path(), ROOT) if (folder / script).is_file()), None)
    assert file is not None, f"there is no {script}"
    source = file.read_text(encoding="utf-8")
    for argument in arguments:
        assert not argument.startswith("--") or f'"{argument}"' in source, f"{script} has no {argument}"


# --- tests -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """What `evaluate` reads of a run that has ended."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config")
    for file, resolve in ((folder / ".hydra" / "config.yaml", False), (folder / "config.yaml", True)):
        file.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, file, resolve=resolve)
    for checkpoint in ("last", "best"):
        shutil.copytree(loading.ASSETS / "tiny", folder / "checkpoints" / checkpoint)
    return folder


@pytest.fixture
def workplace(tmp_path, run_folder, monkeypatch):
    """Makes a folder like a checkout in which somebody has written the files that a page shows, and goes there."""

    def make(shown: dict[str, str]) -> Path:
        for name in ("conf", "sweeps", "benchmarks"):
            if any(file.startswith(f"{name}/") for file in shown):
                shutil.copytree(ROOT / name, tmp_path / name)
            else:
                (tmp_path / name).symlink_to(ROOT / name)
        (tmp_path / "train.py").symlink_to(ROOT / "train.py")
        for name in RUNS:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).symlink_to(run_folder)
        for name, text in shown.items():
            assert (tmp_path / name).resolve().is_relative_to(tmp_path.resolve()), f"{name} is not written into the repository"
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        for module in (Path(name).stem for name in shown if name.endswith(".py")):
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    return make


@pytest.fixture(autouse=True)
def all_is_installed(monkeypatch):
    """So that commands with rollout=vllm and with each logger are checked everywhere."""
    real = importlib.util.find_spec
    found = {name: importlib.machinery.ModuleSpec(name, None) for name in ("vllm", "tensorboard", "mlflow", "trackio")}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: found.get(name) or real(name, *more))


ACCEPTED: set[str] = set()  # with the files of the repository alone


def refused(command: str) -> str | None:
    """Why a command would be refused, None where it would not."""
    if (is_plain := Path("conf").resolve() == CONF) and command in ACCEPTED:
        return None
    for name in MODELS:
        command = command.replace(f" {name} ", f" {loading.ASSETS / 'tiny'} ")
    try:
        check(command)
    except (AssertionError, UserError, HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    ACCEPTED.update([command] if is_plain else [])
    return None


WITH_COMMANDS = [page for page in PAGES if commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_is_accepted(page, workplace):
    workplace(files(page))
    answers = {command: why for command in commands(page.read_text(encoding="utf-8")) if (why := refused(command))}
    assert answers == {}


@pytest.mark.parametrize(
    "command",
    [
        "python train.py algo=nothing",
        "python train.py steps=0",
        "python train.py step=2",
        "python train.py algo=dash,grpo",
        "python train.py --no-such-flag",
        "python train.py -m algo=dash batch.group_size=8,1",
        "python train.py -cd sweeps -cn nothing",
        "python train.py -cn efficiency_math",
        "python train.py -cd nowhere steps=2",
        "python train.py reward=mine",
        "python -m dash_exp.report --nothing",
        "python -m dash_exp.serve port=none",
        "python -m dash_exp.serve port=8001 model=none",
        "python -m dash_exp.evaluate RUN k=[8] n=2",
        "python -m dash_exp.evaluate RUN data=none",
        "python -m dash_exp.grade 5",
        "python -m dash_exp.grade 5 '5.0' reward=none",
        "python -m dash_exp.nothing",
        "python benchmarks/nothing.py",
        "python benchmarks/peers.py --nothing",
        "make nothing",
        "pip install -e '.[nothing]'",
        'sbatch --wrap "python -m dash_exp.serve port=none"',
    ],
)
def test_a_wrong_command_is_found(command, workplace):
    workplace({})
    assert refused(command)


def test_commands_and_files_are_read_from_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Run `make test`, not `make` of `Makefile`:\n\n"
        "    python train.py a=1 \\\n        b=2   # both\n\n"
        '```yaml title="conf/x.yaml"\na: 1\n```\n\n'
        "```bash\nX=1 python -m dash_exp.report DIR\nls\n```\n\n"
        "```text\npython train.py is printed here\n```\n"
    )
    found = commands(page.read_text())
    assert found == ["X=1 python -m dash_exp.report DIR", "python train.py a=1 b=2   # both", "make test", "make"]
