"""Whatever is typed and whatever lies in the files: one message, status 1, no traceback, no result, no model loaded before."""

import contextlib
import errno
import io
import json
import logging
import os
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies as st
import pytest
import yaml
from conftest import ROOT, SMALL, TRAIN, composed, program
from hypothesis import HealthCheck, given, settings
from omegaconf import OmegaConf

from dash_exp.commands import cli, evaluate, serve
from dash_exp.core import files
from dash_exp.core.errors import UserError
from dash_exp.data import jsonl
from dash_exp.models import loading
from dash_exp.report import __main__ as report
from dash_exp.settings import credentials
from dash_exp.settings.validate import validate

TINY = loading.ASSETS / "tiny"
SECRET = "sk-1234567890-not-for-any-file"
# The same examples every time, and no clock.
steady = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass
class Ended:
    """How a command ended: what `sys.exit` was given, and all that was printed."""

    status: object
    printed: str

    @property
    def said(self) -> str:
        return f"{self.printed}\n{self.status}"


@contextlib.contextmanager
def logging_kept():
    """Hydra sets the logging of the process."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(before[0]):
            handler.close()
        root.handlers[:], root.level = before


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """`python train.py ...` in this process, in a folder of the test's own. A model that is loaded fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(loading, "load_policy", lambda *_, **__: pytest.fail("the model was loaded"))

    def run(*arguments: str, main=lambda: runpy.run_path(str(ROOT / "train.py"), run_name="__main__")) -> Ended:
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
        printed, status = io.StringIO(), None
        with logging_kept(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                main()
            except SystemExit as stop:
                status = stop.code
        return Ended(status, printed.getvalue())

    return run


def assert_one_message(ended: Ended, *parts: str) -> None:
    assert isinstance(ended.status, str), ended.said  # sys.exit prints it and makes the status 1
    assert ended.status.startswith("error: ")
    assert sum(line.startswith("error: ") for line in ended.said.splitlines()) == 1, ended.said
    assert "Traceback" not in ended.said
    for part in parts:
        assert part in ended.status


def assert_no_result(folder: Path) -> None:
    assert not list(folder.rglob("metrics.csv"))
    assert not list(folder.rglob("problems.csv"))
    assert not list(folder.rglob("*.safetensors"))
    assert all(json.loads(file.read_text())["status"] == "failed" for file in folder.rglob("result.json"))


NO_ADAM = "~optimizer.betas ~optimizer.fused ~optimizer.weight_decay"
PLACE = "reward@data.tests.x.reward"
TYPED = [
    # what Hydra reads
    ("a=[", "no viable alternative"),
    ("steps", "missing EQUAL"),
    ("steps=", "steps=: is not a whole number"),
    ("algo=dash,grpo", "add -m"),
    ("nogroup=x", "there is no such setting"),
    ("stepz=3", "Did you mean steps?"),
    ("+steps=3", "An item is already at 'steps'"),
    ("~nothing", "'nothing' does not exist"),
    ("batch.groupsize=3", "Did you mean batch.group_size?"),
    (
        "filter=none filter.threshold=0.2",
        "filter.threshold: there is no such setting. dash_exp.algorithms.filters.KeepAll does not",
    ),
    ("filter=quantile filter.dropp=0.2", "Did you mean filter.drop?"),
    ("-m filter=quantile,cppo filter.dropp=0.2", "Did you mean filter.drop?"),
    ("optimizer.eps=1e-6", "optimizer.eps: there is no such setting. torch.optim.AdamW takes it: write +optimizer.eps=..."),
    (
        "optimizer._target_=torch.optim.SGD optimizer.momentum=0.9",
        "torch.optim.SGD takes it: write +optimizer.momentum=...",
    ),
    ("-m filter=advantage,none filter.threshold=0.1", "It is a setting of one option of this sweep, and not of another."),
    ("+reward=math", "+reward: an option is chosen there already. Write reward=NAME, without the +."),
    (
        "rollout=vllm rollout.sampler.dtyppe=x",
        "VLLMSampler may hand it on to what it builds: then write +rollout.sampler.dtyppe=",
    ),
    ("algo=gpro", "algo/gpro"),
    ("kl=-1", "kl.coef=-1: is not a number of at least 0"),
    ("kl=abc", "kl takes a number"),
    ("kl=0,0.04", "add -m"),
    ("algo=1", "a group takes the name of a file"),
    ("algo=null", "not a number or null"),
    ("algo=dahs", "algo=dahs: there is no file algo/dahs.yaml in conf/ or in a folder given with -cd. Did you mean dash?"),
    ("experiment=papr_math", "there is no file experiment/papr_math.yaml"),
    ("hydra/launcher=rya", "Did you mean ray?"),
    ("+test@data.tests.x=gsm", "test=gsm: there is no file test/gsm.yaml"),
    ("reward@data.tests.in_dist.reward=math", "nothing is chosen there so far. Write +reward@data.tests.in_dist.reward=NAME."),
    *(
        (
            f"+test@data.tests.x=gsm8k +{PLACE}={name}",
            f"+{PLACE}: an option is chosen there already. Write {PLACE}=NAME, without",
        )
        for name in ("math", "exact")
    ),
    ("name=größe", "has letters that Hydra reads only inside quotes. Write \"name='größe'\""),
    ("-m name=a,größe", "Write \"name=a,'größe'\""),
    ("+batch.promts=3", "Did you mean batch.prompts?"),
    ("+own.n=3 steps=-1", "steps=-1"),
    # what only a sweep uses, and what can never answer
    ("hydra/launcher=joblib", "hydra/launcher=joblib: is for the cells of a sweep, and this is a single run. Add -m"),
    ("hydra/launcher=submitit_slurm", "Add -m"),
    ("hydra/sweeper=optuna", "hydra/sweeper=optuna: is for the cells of a sweep"),
    ("-m hydra/launcher=ray hydra.launcher.ray.init.address=127.0.0.1:9", "127.0.0.1:9: does not answer (Connection refused)"),
    ("-m hydra/launcher=ray hydra.launcher.ray.init.address=127.0.0.1:99999", "is not an address: its port is not a number"),
    ("rollout=vllm_server rollout.sampler.servers=[http://127.0.0.1:99999]", "its port is not a number from 1 to 65535"),
    # searches
    ("-m hydra/sweeper=optuna hydra.sweeper.direction=maximise", "hydra.sweeper.direction=maximise: is not a direction"),
    ("-m hydra/sweeper=optuna hydra.sweeper.direction=[minimize,maximize]", "a search has one objective"),
    ("-m hydra/sweeper=optuna hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials=0: is not a whole number of at least 1"),
    ("-m hydra/sweeper=optuna optimizer.lr=interval(1e-3,1e-5)", "the search: The `low` value must be smaller"),
    ("-m hydra/sweeper=optuna hydra.sweeper.storage=nonsense", "the search: Could not parse"),
    ("hydra.nothing=1", "there is no such setting"),
    ("hydra.run.dir=null", "hydra.run.dir"),
    ("hydra.mode=WRONG", "Invalid value 'WRONG'"),
    ("-cn kl", "-cn kl: there is no such file in conf/. Name its folder as well: -cd sweeps"),
    ("-cd nowhere", "Additional config directory"),
    ("-m steps=range(a,b)", "range(a,b)"),
    ("-m steps=range(3", "no viable alternative"),
    ("-m seed=choice()", "empty choice"),
    ("-m seed=interval(0,1)", "does not support sweep type"),
    ("-m seed=0,-1", "seed=-1"),
    ("-m algo=dash,nothing", "algo/nothing"),
    ("-m kl=0,abc", "kl takes a number"),
    ("steps=${steps}", "Recursive interpolation"),
    ("steps=${seed", "mismatched input"),
    ("steps=${oc.env:NOTHING_OF_THAT_NAME}", "NOTHING_OF_THAT_NAME"),
    ("name=${nothing}", "Interpolation key 'nothing' not found"),
    # where the run's folder should be made
    ("hydra.run.dir=/dev/null", "/dev/null: there is a file where a folder should be"),
    ("hydra.run.dir=/dev/null/x", "/dev/null/x: there is a file where a folder should be"),
    (f"name={'x' * 300}", "the name is too long. Choose a shorter name=..."),
    # settings
    ("~algo", "algo=null: is not a section"),
    ("data.tests=null", "data.tests=null: is not a section"),
    ("filter.threshold=null", "filter.threshold=null"),
    ("name=..", "name=..: is not a folder's name"),
    ("model.path=/nowhere/model", "model.path=/nowhere/model: there is no such folder"),
    ("model.path=", "model.path='': is not a text"),
    ("model.tokenizer=/nowhere", "model.tokenizer=/nowhere: there is no such folder"),
    ("optimizer.betas=[0.9,1.5]", "optimizer.betas"),
    ("+optimizer.nothing=1", "optimizer.nothing: torch.optim.AdamW has no such setting"),
    ("schedule.name=slow", "slow is not a valid SchedulerType"),
    ("+trainer.nothing=1", "trainer.nothing: cannot be used"),
    ("reward.pattern=3", "reward"),
    ("reward.pattern=a", "reward.pattern=a: has 0 groups"),
    ("reward=code reward.isolation=process", "has no tests for its program"),
    ("reward=math_format reward.parts=null", "SumReward"),
    ("data.train.operands=[6,3]", "data.train.operands=[6, 3]: is not a range"),
    ("data.train.operands=3", "data.train.operands=3: is not a pair"),
    ("data.train.form={symbols:0}", "data.train.form"),
    ("data.train.form=3", "data.train.form"),
    ("data.train.skip=abc", "data.train.skip=abc: is not a share"),
    ("data.train.size=1.5", "data.train.size=1.5: is not a whole number"),
    ("data.tests.in_dist.size=0", "data.tests.in_dist.size=0: is not a whole number"),
    ("+data.train.direct=[2]", "data.train.direct[0]=2: is not a share"),
    ("data.train.operands=[3,3]", "data.train.size=20000: is too much: there are 9000 such problems. Use at most 4500"),
    ("data=gsm8k data.path=./nowhere", "data.path=./nowhere: there is no file nowhere/test.jsonl"),
    ("data=jsonl", "data.path: is not given"),
    ("data=jsonl data.path=.", "there is no file test.jsonl"),
    ("data=jsonl data.path=/dev/null", "there is no file /dev/null/"),
    # parts of other packages
    (
        f"optimizer._target_=torch.optim.LBFGS {NO_ADAM}",
        "its step() needs closure",
    ),
    ("schedule.name=reduce_lr_on_plateau", "its step() needs metrics"),
    ("reward._target_=own_parts.Typo", "reward._target_=own_parts.Typo: there is no Typo in own_parts"),
    ("algo.advantage._target_=own_parts.total", "does not work as an advantage (it gives the shape ()"),
    ("data=gsm8k data.path=https://me:pass@host/x", "data.path: holds a password"),
]


@pytest.mark.parametrize(("arguments", "says"), TYPED, ids=[a[:60] for a, _ in TYPED])
def test_what_is_typed(typed, tmp_path, arguments, says):
    ended = typed(*arguments.split(), "logger=csv")
    assert_one_message(ended, says)
    assert_no_result(tmp_path)


ENVIRONMENT = [
    ("WANDB_MODE", "nonsense", "WANDB_MODE=nonsense: is not known to W&B. Use one of online, offline, shared, disabled"),
    ("WANDB_BASE_URL", "http://local host", "WANDB_BASE_URL=http://local host: is not the address of a server: it has a space"),
]


@pytest.mark.parametrize(("name", "value", "says"), ENVIRONMENT, ids=[name for name, _, _ in ENVIRONMENT])
def test_what_the_environment_says(typed, tmp_path, monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    assert_one_message(typed(), says)
    assert_no_result(tmp_path)


GOOD = b'{"id": "a", "prompt": "1+1=", "answer": "2"}\n{"id": "b", "prompt": "2+2=", "answer": "4"}\n'
LINE = b'{"prompt": "3+3=", "answer": "6"}'
FILES = {
    "UTF-16": (GOOD.decode().encode("utf-16"), "line 1: is not UTF-8 but UTF-16"),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-le"), "line 1: is not UTF-8 but UTF-16"),
    "UTF-32": (GOOD.decode().encode("utf-32"), "line 1: is not UTF-8 but UTF-16 or UTF-32"),
    "Latin-1": (GOOD + '{"prompt": "é", "answer": "1"}'.encode("latin-1"), "line 3: is not UTF-8 ("),
    "repeated id": (GOOD + b'{"id": "a", "prompt": "1", "answer": "1"}', "line 3: has the id 'a' of"),
    "missing field": (GOOD + b'{"prompt": "1"}', "line 3: has no field 'answer'"),
    "cut off": (GOOD + LINE[:20], "line 3: is not valid JSON"),
    "NUL bytes at the end": (GOOD + b"\0" * 512, "line 3: is not valid JSON"),
    "NUL bytes alone": (b"\0" * 512, "line 1: is not valid JSON"),
    "NUL in a text": (GOOD + rb'{"prompt": "1\u0000", "answer": "1"}', "line 3, field prompt: has a NUL character"),
    "half a surrogate": (GOOD + rb'{"prompt": "\ud800", "answer": "1"}', "line 3, field prompt: has half of a surrogate"),
    "half a surrogate as id": (GOOD + rb'{"id": "\udc00", "prompt": "1", "answer": "1"}', "line 3, field id: has half"),
    "NaN": (GOOD + b'{"prompt": "1", "answer": NaN}', "line 3, field answer: is nan"),
    "infinity": (GOOD + b'{"prompt": "1", "answer": -Infinity}', "line 3, field answer: is -inf"),
    "too large a number": (GOOD + b'{"prompt": "1", "answer": ' + b"9" * 5000 + b"}", "line 3: has a number that cannot be"),
    "deep": (GOOD + b'{"a":' * 100_000, "line 3: is nested too deeply"),
    "a list": (b'[\n{"prompt": "1", "answer": "1"}]', "line 1: is not valid JSON"),
    "a list in a line": (b'[{"prompt": "1", "answer": "1"}]', "line 1: is not a JSON object"),
    "null": (GOOD + b'{"prompt": null, "answer": "1"}', "line 3, field prompt: is None"),
    "truth": (GOOD + b'{"prompt": true, "answer": "1"}', "line 3, field prompt: is True"),
    "blank text": (GOOD + b'{"prompt": " ", "answer": "1"}', "line 3, field prompt: is ' '"),
    "list as text": (GOOD + b'{"prompt": ["1"], "answer": "1"}', "line 3, field prompt, message 1: is '1'"),
    "empty": (b"", "its train split is empty"),
    "blank lines": (b"\n  \n\r\n", "is empty"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(range(256)), "line 1: is compressed"),
    "zip": (b"PK\x03\x04" + bytes(range(256)), "line 1: is compressed"),
    "CSV": (b"prompt,answer\n1+1=,2\n", "line 1: is not valid JSON"),
}


def write(folder: Path, train: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_bytes(train)
    (folder / "test.jsonl").write_bytes(b'{"prompt": "5+5=", "answer": "10"}')
    return folder


@pytest.mark.parametrize("kind", FILES)
def test_what_lies_in_the_data(typed, tmp_path, kind):
    content, says = FILES[kind]
    folder = write(tmp_path / "data", content)
    ended = typed("logger=csv", "data=jsonl", f"data.path={folder}", "reward=exact")
    assert_one_message(ended, str(folder), "train", says)
    assert_no_result(tmp_path)


def test_a_mark_of_utf_8_is_no_mistake(tmp_path):
    folder = write(tmp_path, "\ufeff".encode() + GOOD)
    assert [p.prompt for p in jsonl.load(str(folder), "train", "prompt", "answer")] == ["1+1=", "2+2="]


def test_a_file_that_may_not_be_read(typed, tmp_path, monkeypatch):
    folder = write(tmp_path / "data", GOOD)
    opened = Path.open

    def refuse(path, *arguments, **more):
        if path.name == "train.jsonl":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", refuse)
    ended = typed("logger=csv", "data=jsonl", f"data.path={folder}", "reward=exact")
    assert_one_message(ended, f"{folder}/train.jsonl: cannot be read (Permission denied)")


def test_a_folder_in_place_of_a_file(typed, tmp_path):
    (tmp_path / "data" / "train.jsonl").mkdir(parents=True)
    (tmp_path / "data" / "test.jsonl").write_bytes(LINE)
    assert_one_message(typed("logger=csv", "data=jsonl", "data.path=data"), "there is no file data/train.jsonl")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_takes_nothing(typed, tmp_path, monkeypatch, code):
    def refuse(path, *_, **__):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert_one_message(typed("logger=csv"), "outputs/arithmetic-tiny", files.TROUBLES[code][0])


def test_errors_of_the_program_keep_their_traceback(typed):
    def broken():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "own.py")

    with pytest.raises(FileNotFoundError):
        typed(main=lambda: cli.launch(broken))


SWEEPS = {
    "unknown key": ("defaults: [config, _self_]\nstepz: 3\n", "stepz: there is no such setting. Did you mean steps?"),
    "unknown key in a section": ("defaults: [config, _self_]\nbatch: {promts: 3}\n", "Did you mean batch.prompts?"),
    "unknown key of Hydra": ("defaults: [config, _self_]\nhydra: {sweeper: {parms: {}}}\n", "hydra.sweeper.parms: there is no"),
    "no defaults": ("default: [x]\n", "default: there is no such setting. Did you mean defaults?"),
    "no YAML": ("a: [", "is not valid YAML"),
    "a key twice": ("defaults: [config, _self_]\nsteps: 3\nsteps: 4\n", "duplicate key steps"),
    "no such default": ("defaults: [config, nothing, _self_]\n", "Could not load 'nothing'"),
    "unknown setting": ("defaults: [config, _self_]\nsteps: {a: 3}\n", "steps={'a': 3}"),
    "a list": ("- 1\n- 2\n", "bad"),
    "bad cell": ("defaults: [config, _self_]\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,-1'}}}\n", "seed=-1"),
}


@pytest.mark.parametrize("kind", SWEEPS)
def test_files_of_sweeps(typed, tmp_path, kind):
    text, says = SWEEPS[kind]
    (tmp_path / "bad.yaml").write_text(text)
    ended = (
        typed("-cd", str(tmp_path), "-cn", "bad", "logger=csv")
        if "config" in text
        else typed("-cd", str(tmp_path), "-cn", "bad")
    )
    assert_one_message(ended, says)
    assert_no_result(tmp_path)


ENCODINGS = {
    "Latin-1": ("name: é".encode("latin-1"), 33),  # é stands after 27 bytes of defaults, and "name: "
    "UTF-16": ("name: a".encode("utf-16"), 27),  # its mark
    "UTF-16 without a mark": ("name: a".encode("utf-16-le"), 28),  # the first NUL
}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_settings_files_that_are_not_utf_8(typed, tmp_path, kind):
    content, place = ENCODINGS[kind]
    (tmp_path / "bad.yaml").write_bytes(b"defaults: [config, _self_]\n" + content)
    for named in (["-cd", str(tmp_path)], [f"--config-dir={tmp_path}"]):
        ended = typed(*named, "-cn", "bad", "logger=csv")
        assert_one_message(ended, f"bad.yaml: is not UTF-8 (byte {place}). Save it in UTF-8.")
    assert_no_result(tmp_path)


FOLDERS = {
    "generation_config.json is torn": ("generation_config.json", b'{"eos', "generation_config.json is damaged or cut off"),
    "config.json is no JSON": ("config.json", b"{torn", "config.json is damaged or cut off"),
    "config.json is a list": ("config.json", b"[]", "config.json is not a JSON object"),
    "tokenizer.json is torn": ("tokenizer.json", (TINY / "tokenizer.json").read_bytes()[:500], "tokenizer.json is damaged"),
    "tokenizer.json is empty": ("tokenizer.json", b"", "tokenizer.json is empty"),
    "tokenizer_config.json is torn": ("tokenizer_config.json", b"{", "tokenizer_config.json is damaged"),
    "no tokenizer": ("tokenizer.json", None, "has no vocabulary"),
    "no weights": ("model.safetensors", None, "has no weights (*.safetensors)"),
}


def copy_of_tiny(folder: Path) -> Path:
    folder.mkdir()
    for file in TINY.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("kind", FOLDERS)
def test_model_folders(typed, tmp_path, kind):
    name, content, says = FOLDERS[kind]
    folder = copy_of_tiny(tmp_path / "model")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert_one_message(typed("logger=csv", f"model.path={folder}"), str(folder), says)
    assert_no_result(tmp_path / "outputs")


RUN_FILES = {
    "Latin-1": ("name: é".encode("latin-1"), "is not a file of settings in UTF-8"),
    "cut off": (b"model: {path: [", "is not a file of settings"),
    "a list": (b"[1, 2]", "is not the configuration of a run"),
    "of something else": (b"model: gpt\n", "is not the configuration of a run"),
    "empty": (b"", "is not the configuration of a run"),
}


@pytest.mark.parametrize("kind", RUN_FILES)
def test_run_folders_whose_settings_are_damaged(typed, tmp_path, kind):
    content, says = RUN_FILES[kind]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    ended = typed("run", main=lambda: cli.launch(evaluate.main))
    assert_one_message(ended, "run/config.yaml: ", says)


COMMANDS = [
    (evaluate, "nowhere/at/all", "there is no such folder"),
    (evaluate, "k=8", "is neither a run folder nor a model"),
    (evaluate, "TINY k=0", "k=0: is not a whole number"),
    (evaluate, "TINY k=8 n=4", "is more than n=4"),
    (evaluate, "TINY top_p=2", "top_p=2: is not a number above 0 and at most 1"),
    (evaluate, "TINY checkpoint=best", "is not a run folder"),
    (evaluate, "TINY nothing=1", "there is no such setting"),
    (evaluate, "TINY data=[", "no viable alternative"),
    (evaluate, "TINY out=x.txt", "is not the name of a .json file"),
    (evaluate, "TINY data=jsonl data.path=nowhere", "there is no file"),
    (report, "nowhere", "nowhere"),
    (report, "nowhere target=2", "target=2: is not an accuracy"),
    (report, "x --what", "--what: is not an option"),
    (report, "out=x", "DIR: is missing"),
    (serve, "port=x", "port=x: is not a whole number"),
    (serve, "port=70000", "port=70000"),
    (serve, "port=8001 nothing", "is not of the form name=value"),
    (serve, "port=8001 model.path=", "model.path='': is not a text"),
    (serve, "port=8001 model=nothing", "model/nothing"),
    (serve, "port=8001 host=nowhere.invalid", "the server cannot listen there"),
]


@pytest.mark.parametrize(("command", "arguments", "says"), COMMANDS, ids=[f"{c.__name__} {a}" for c, a, _ in COMMANDS])
def test_the_other_commands(typed, tmp_path, command, arguments, says):
    ended = typed(*arguments.replace("TINY", str(TINY)).split(), main=lambda: cli.launch(command.main))
    assert_one_message(ended, says)
    assert not list(tmp_path.iterdir())


# --- generated ---------------------------------------------------------------------------------------------------------

NUMBERS_OF = {
    "": ("steps", "seed", "clip_norm", "table_rows", "completions_every", "resume_every"),
    "eval": ("every", "prompts", "limit", "n", "temperature", "top_p"),
    "optimizer": ("lr", "weight_decay"),
    "schedule": ("num_warmup_steps",),
    "kl": ("coef",),
    "filter": ("threshold",),
    "rollout": (
        "temperature",
        "max_response_tokens",
        "staleness",
        "refresh_every",
        "mismatch_limit",
        "sampler.max_sequences",
        "importance_cap",
    ),
    "batch": ("prompts", "sample_prompts", "micro_tokens", "group_size", "epochs", "minibatches"),
    "budget": ("seconds", "sampled_tokens", "optimizer_steps"),
    "teacher": ("tries", "max_tokens", "seed"),
}
NUMBERS = [f"{section}.{name}".lstrip(".") for section, names in NUMBERS_OF.items() for name in names]
words = st.text().filter(lambda text: text != "auto" and "$" not in text)
NOT_NUMBERS = st.one_of(
    words,
    st.booleans(),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.floats(max_value=-1e-9, allow_infinity=False),
    st.integers(max_value=-1),
    st.lists(st.integers(), max_size=2),
)


@steady
@given(key=st.sampled_from(NUMBERS), value=NOT_NUMBERS)
def test_no_setting_takes_what_is_not_its_kind_of_number(key, value):
    cfg = whole().copy()
    OmegaConf.update(cfg, key, value)
    with pytest.raises(UserError) as error:
        validate(cfg)
    assert key.rpartition(".")[2] in str(error.value)


def whole(found=[]):  # noqa: B006  composed once
    if not found:
        found.append(composed())
    return found[0]


@settings(steady, max_examples=6)
@given(key=st.sampled_from(NUMBERS), value=st.sampled_from(["-3", "abc", "nan", "true", "[1]", "-0.5", "{a:1}", "''"]))
def test_nor_does_the_command_line(typed, key, value):
    assert_one_message(typed("logger=csv", f"{key}={value}"), key.rpartition(".")[2])


values = st.one_of(st.text(st.characters(categories=["Cs", "Nd", "Cc"])), st.none(), st.booleans(), st.floats(), st.integers())
objects = st.fixed_dictionaries({"prompt": values, "answer": values}, optional={"id": values}).map(
    lambda o: json.dumps(o).encode()
)


@st.composite
def mutated(draw):
    """The lines of a good file with a span replaced by other bytes."""
    start = draw(st.integers(0, len(GOOD)))
    end = draw(st.integers(start, min(len(GOOD), start + 8)) | st.just(len(GOOD)))
    return (
        GOOD[:start]
        + draw(st.binary(max_size=8) | st.sampled_from([b"\\ud800", b"\\u0000", b"NaN", b"\n", b"[", b'"']))
        + GOOD[end:]
    )


@settings(steady, max_examples=300)
@given(content=st.one_of(mutated(), objects, st.binary(max_size=200)))
def test_any_file_is_read_or_refused(tmp_path, content):
    """What is read can be tokenized, written to files, and told apart."""
    folder = write(tmp_path / "data", content)
    try:
        problems = jsonl.load(str(folder), "train", "prompt", "answer")
    except UserError as error:
        assert str(folder) in str(error)
        return
    assert problems
    assert len({p.id for p in problems}) == len(problems)
    assert len({bool(problem.answer.strip()) for problem in problems}) == 1  # all have an answer, or none has
    for problem in problems:
        assert problem.id.strip() and problem.prompt.strip()
        for text in (problem.id, problem.prompt, problem.answer):
            text.encode()


@settings(steady, max_examples=5)
@given(content=st.binary(min_size=1, max_size=200))
def test_random_bytes_as_data(typed, tmp_path, content):
    folder = write(tmp_path / "data", content)
    assert_one_message(typed("logger=csv", "data=jsonl", f"data.path={folder}", "reward=exact"), "train")


# --- as a user runs it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a=["], "no viable alternative"),
        (["hydra.run.dir=/dev/null/x"], "there is a file where a folder should be"),
        (["data=jsonl", "data.path=."], "no file"),
    ],
    ids=lambda value: str(value),
)
def test_in_a_process_of_its_own(tmp_path, arguments, says):
    done = program(tmp_path, TRAIN, "logger=csv", *arguments, is_forked=False)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert_no_result(tmp_path)


def test_variables_that_are_no_secrets_do_no_harm(monkeypatch):
    monkeypatch.setenv("MONKEY", "qwen2.5-0.5b-instruct")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-or-true-as-it-may-be")
    credentials.refuse([("model", "model=qwen2.5-0.5b-instruct"), ("x", "x=false-or-true-as-it-may-be")])
    monkeypatch.setenv("GITHUB_TOKEN", "qwen2.5-0.5b-instruct")
    with pytest.raises(UserError, match="holds the value of GITHUB_TOKEN"):
        credentials.refuse([("model", "model=qwen2.5-0.5b-instruct")])


def test_a_secret_in_a_file_of_settings_or_for_the_environment_is_refused_before_it_is_written(train, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"defaults: [config, _self_]\nlogger: {{wandb: {{project: {SECRET}}}}}\n")
    for typed in (["-cd", str(tmp_path), "-cn", "mine"], ["+hydra.job.env_set.HF_TOKEN=hf_abcdefghijklmnop"]):
        ended = train(*typed, "name=sec", env={"MY_API_KEY": SECRET})
        assert ended.returncode == 1
        assert ended.stderr.count("error: ") == 1
        assert not (tmp_path / "outputs").exists()


SECRETS = {
    name: f"{SECRET}-{name.lower()}" for name in ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY")
}


def assert_kept_secret(folder: Path, *texts: str) -> None:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert files
    for file in files:
        content = file.read_bytes()
        assert not any(text.encode() in content for text in texts), file


def test_no_file_of_a_run_holds_a_secret(train, tmp_path):
    """A run that is done, with W&B's own files; one that fails while it is built; and settings with secrets, refused."""
    places = {f"WANDB_{name}_DIR": str(tmp_path / "of_wandb") for name in ("CONFIG", "CACHE", "DATA")}
    env = {**places, **SECRETS, "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    small = [o for o in SMALL if o != "logger=csv"] + ["logger=both", "steps=1"]
    done = program(tmp_path, TRAIN, *small, "hydra.run.dir=done", env=env, is_forked=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "done").glob("wandb/offline-run-*/*.wandb"))
    failed = train(*small, "hydra.run.dir=failed", "reward.pattern=a", env=env)
    assert failed.returncode == 1
    assert yaml.safe_load((tmp_path / "failed" / "config.yaml").read_text())["reward"]["pattern"] == "a"
    refused = train(*small, "hydra.run.dir=refused", "+own.note=x/${oc.env:HF_TOKEN}", env=env)
    literal = train(*small, "hydra.run.dir=literal", f"+own.note={SECRETS['OPENAI_API_KEY']}", env=env)
    assert "holds the value of HF_TOKEN" in refused.stderr
    assert "holds the value of OPENAI_API_KEY" in literal.stderr
    assert_kept_secret(tmp_path, SECRET)
    for ended in (done, failed, refused, literal):
        assert SECRET not in ended.stdout + ended.stderr
