"""Every YAML under conf/ and sweeps/ composes, passes validation and instantiates."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import CONF, NANO, ROOT, composed, needs_vllm, save_scorer
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from special_tokens import CHAT

from dash_exp.commands import run
from dash_exp.commands.build import build, importance_cap, make_trainer
from dash_exp.core.errors import UserError
from dash_exp.distributed.ranks import ALONE
from dash_exp.models import loading
from dash_exp.settings import claims
from dash_exp.settings.overrides import number_of_kl
from dash_exp.settings.validate import validate

GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir() and p.name != "scale")  # which is for sweeps
FILES = sorted(
    p.relative_to(CONF) for p in CONF.rglob("*.yaml") if p.name != "config.yaml" and p.parent.name not in ("scale", "launcher")
)
PROGRAMS = [f"{group}/{name}.yaml" for group in ("data", "test") for name in ("mbpp", "mbpp_plus", "programs")]
PROGRAMS += ["reward/code.yaml", "test/humaneval.yaml", "data/math_wide.yaml"]
GYM = [
    "data/reasoning_gym.yaml",
    "data/sums.yaml",
    "reward/reasoning_gym.yaml",
    "reward/sums_parts.yaml",
    "test/reasoning_gym.yaml",
]
MARKS: dict = (
    dict.fromkeys(GYM, pytest.mark.needs("gym"))
    | {"rollout/vllm.yaml": needs_vllm}
    | dict.fromkeys(PROGRAMS, pytest.mark.needs("bubblewrap"))
    | {"data/sums_wide.yaml": [pytest.mark.needs("gym"), pytest.mark.needs("bubblewrap")]}
    | {f"logger/{name}.yaml": pytest.mark.needs(name) for name in ("tensorboard", "mlflow", "trackio")}
)
TINY = str(loading.ASSETS / "tiny")


def rows(folder: Path) -> Path:
    """A folder whose rows have the fields of every data set at once."""
    folder.mkdir()
    row = {"question": "1+{}?", "problem": "1+{}?", "prompt": "1+{}?", "answer": "#### 2", "solution": "\\boxed{{2}}"}
    program = {"text": "one {}", "code": "def f(): return 1", "test": "assert f() == 1"}
    for split, start in (("train", 601), ("test", 11)):
        lines = [
            json.dumps(
                {k: v.format(f"{split}{i}") for k, v in (row | program).items()}
                | {"task_id": start + i, "test_list": [f"assert f() == 1  # {start + i}"]}
            )
            for i in range(80)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    begun = {"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    return 1\n"}
    (folder / "HumanEval.jsonl").write_text(json.dumps(begun | {"test": "def check(f):\n    assert f() == 1"}))
    return folder


def with_a_chat_template(folder: Path) -> Path:
    tokenizer = loading.load_tokenizer(TINY)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def override(file: Path) -> str:
    group, name = file.parent.as_posix(), file.name.removesuffix(".yaml")
    if group == "test":
        return f"+test@data.tests.more={name}"
    return f"{group}='{name}'" if group == "kl" else f"{group}={name}"


@pytest.mark.parametrize("file", [pytest.param(f, marks=MARKS.get(str(f), ()), id=str(f)) for f in FILES])
def test_every_file_composes_and_instantiates(file, tmp_path):
    """What needs the network gets a local stand-in of the same kind; everything else is built as it stands."""
    overrides = [override(file)]
    path = rows(tmp_path / "data")
    gym = ["data=reasoning_gym", "data.task=chain_sum"]
    must_be_given = {
        "data=reasoning_gym": gym[1:],
        "reward=reasoning_gym": gym,
        "+test@data.tests.more=reasoning_gym": ["data.tests.more.task=gcd"],
        "+test@data.tests.more=jsonl": [f"data.tests.more.path={path}", "+reward@data.tests.more.reward=math"],
        "jsonl": [f"data.path={path}"],
        "hub": [f"data.path={path}"],
        "verl": [f"data.path={path}", "data.answer=answer", "data.extra=[problem]"],
        "reward_model": [f"reward.path={(scorer := save_scorer(tmp_path / 'scorer'))}"],
        "arithmetic_parts": [f"reward.parts.judge.path={scorer}"],
        "sums_parts": ["data=sums", f"reward.parts.judge.path={scorer}"],
        "math_parts": [f"reward.parts.judge.path={scorer}"],
        "code": ["data=mbpp"],
        "chat": [f"model.tokenizer={with_a_chat_template(tmp_path / 'tokenizer')}"],
    }
    cfg = composed(*overrides, *must_be_given.get(override(file), must_be_given.get(file.stem, [])))
    validate(cfg)
    for key in {"path", "gsm8k_path"} & set(cfg.data):
        cfg.data[key] = str(path)
    for test in filter(None, cfg.data.tests.values()):
        if "path" in test and not OmegaConf.is_interpolation(test, "path"):
            test.path = str(path)
        if "max_response_tokens" in test:
            test.max_response_tokens = 64
    if cfg.data.name == "programs":  # fewer to grade
        cfg.data.train.size, cfg.data.tests.in_dist.size, cfg.data.tests.out_dist.size = 80, 8, 8
    if cfg.data.name == "arithmetic":
        cfg.data.train.size = 500  # quicker to make
    cfg.rollout.max_response_tokens = 64  # what the stand-in has room for
    cfg.teacher.file = str(tmp_path / "traces.jsonl")
    if not cfg.model.path.startswith(str(loading.ASSETS)):  # a hub name, or the folder that has it here
        cfg.model.path = TINY
        if cfg.model.instruct is True:
            cfg.model.tokenizer = str(with_a_chat_template(tmp_path / "tokenizer"))
    if not torch.cuda.is_available():
        cfg.trainer.accelerator = "cpu"
    cfg.model.architecture = cfg.model.architecture and NANO
    if cfg.data.train is None:
        with pytest.raises(UserError, match=r"^data\.train: is null: data=math500 has nothing to train on"):
            build(cfg)
        cfg.data.train = {**cfg.data.tests.in_dist, "split": "train"}
    parts = build(cfg)
    assert list(parts.data.test_prompts) == [name for name, test in cfg.data.tests.items() if test is not None]
    assert parts.module.objective.kl_coef(0) == cfg.kl.coef
    assert (parts.module.reference is None) == (cfg.kl.coef == 0 or cfg.kl.place == "reward")
    assert make_trainer(cfg, tmp_path, ALONE, []).max_epochs == cfg.steps
    parts.data.close()


@pytest.mark.parametrize(
    "overrides",
    [
        "",
        "algo=grpo steps=3",
        "+test@data.tests.more=math500 ~optimizer.betas ++x.y=[1,2] seed=7 algo=ppo_mini algo.loss.clip_low=0.5",
        "data=gsm8k rollout=vllm_server kl='0' +trainer.deterministic=true eval.k=[] reward.pattern='a,(b)'",
    ],
)
def test_what_the_tests_compose_is_what_hydra_composes(overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        expected = compose("config", overrides=overrides.split())
    for _ in range(2):
        cfg = composed(*overrides.split())
        assert OmegaConf.to_yaml(cfg) == OmegaConf.to_yaml(expected)
        assert OmegaConf.is_struct(cfg) == OmegaConf.is_struct(expected)
        cfg.seed, cfg.data.train = 99, None  # changes no other


def test_all_groups_are_covered():
    groups = "algo batch data experiment filter hydra kl logger model prompt reward rollout select teacher test trainer"
    assert groups.split() == GROUPS
    assert {f.parent.name for f in FILES} == {*GROUPS} - {"hydra"}  # whose launchers are composed in test_clusters.py


def differences(first, second):
    """Dotted keys whose values differ."""

    def flat(node, prefix=""):
        for key, value in node.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    a, b = (dict(flat(OmegaConf.to_container(c))) for c in (first, second))
    return {k for k in a.keys() | b.keys() if a.get(k, "absent") != b.get(k, "absent")}


def test_the_arms_of_the_paper_differ_in_nothing_but_their_question():
    dash = composed("algo=dash")
    no_gf = composed("algo=no_gf")
    assert differences(dash, no_gf) == {"algo.name", "filter._target_", "filter.threshold"}
    assert differences(no_gf, composed("algo=grpo")) == {"algo.name", "batch.sample_prompts"}
    ppo = {"algo.name", "algo.loss._target_", "algo.loss.clip_low", "algo.loss.clip_high"}
    assert differences(no_gf, composed("algo=ppo_multi")) == {*ppo, "batch.epochs"}
    assert differences(no_gf, composed("algo=ppo_mini")) == {*ppo, "batch.minibatches"}
    assert (dash.batch.sample_prompts, dash.filter.threshold) == (None, 0.1)
    assert composed("algo=grpo").batch.sample_prompts == 2
    assert composed("algo=ppo_multi").batch.epochs == 3
    assert composed("algo=ppo_mini").batch.minibatches == 32
    assert differences(dash, composed("algo=no_kl")) == {"algo.name", "kl.coef"}


def test_what_others_call_by_these_names():
    assert composed("algo=dapo").algo.loss.clip_high == 0.28
    assert composed("algo=dapo").filter.refill_rounds == 3
    assert composed("algo=dr_grpo").algo.denominator.max_tokens == 64


@pytest.mark.parametrize(
    ("algo", "advantage", "weighting", "denominator", "kl", "truncated", "filtered"),
    [
        # KL: coefficient, place and estimator. From the papers that the files name
        ("dr_grpo", "group_centered", "token_sum", "per_sampled_length", (0, "loss", "k3"), "score", "KeepAll"),
        ("dapo", "group_normalized", "token_sum", "per_kept_token", (0, "loss", "k3"), "penalize", "ZeroVariance"),
        ("cispo", "group_normalized", "token_sum", "per_kept_token", (0, "loss", "k3"), "penalize", "ZeroVariance"),
        ("gspo", "group_normalized", "sequence_mean", "per_sampled", (0, "loss", "k3"), "score", "KeepAll"),
        ("rloo", "group_leave_one_out", "token_sum", "per_sampled", (0.04, "reward", "k1"), "score", "KeepAll"),
        ("reinforce", "raw", "token_sum", "per_sampled", (0, "loss", "k3"), "score", "KeepAll"),
        ("grpo", "group_normalized", "sequence_mean", "per_sampled", (0.04, "loss", "k3"), "score", "KeepAll"),
        ("ppo_mini", "group_normalized", "sequence_mean", "per_sampled", (0.04, "loss", "k3"), "score", "KeepAll"),
        ("ppo_multi", "group_normalized", "sequence_mean", "per_sampled", (0.04, "loss", "k3"), "score", "KeepAll"),
    ],
)
def test_an_algorithm_has_the_defaults_of_its_paper(algo, advantage, weighting, denominator, kl, truncated, filtered):
    cfg = composed(f"algo={algo}")
    parts = (cfg.algo.advantage, cfg.algo.weighting, cfg.algo.denominator, cfg.filter)
    assert [part._target_.rpartition(".")[2] for part in parts] == [advantage, weighting, denominator, filtered]
    assert (cfg.kl.coef, cfg.kl.place, cfg.kl.estimator) == kl
    assert cfg.rollout.truncated == truncated
    asked = composed(f"algo={algo}", *number_of_kl(["kl=0.01"]), "rollout.truncated=mask", "rollout=vllm_server")
    assert (asked.kl.coef, asked.rollout.truncated) == (0.01, "mask")
    assert composed(f"algo={algo}", "kl=linear", "filter=none").kl.schedule._target_.endswith("Linear")
    assert composed(f"algo={algo}", "kl=linear", "filter=none").filter._target_.endswith("KeepAll")


def test_math500_needs_a_test_file_alone(tmp_path):
    (rows(tmp_path / "data") / "train.jsonl").unlink()
    cfg = composed("data=math500", f"data.path={tmp_path}/data")
    validate(cfg)
    problems = instantiate(cfg.data.tests.in_dist)
    assert (len(problems), problems[7].prompt, problems[7].answer) == (80, "1+test7?", "#### 2")
    assert cfg.reward._target_ == "dash_exp.rewards.math.MathReward"
    assert cfg.data.tests.out_dist is None


def test_every_teacher_is_what_sft_m_asks(tmp_path, tokenizer):
    for file in (CONF / "teacher").iterdir():
        cfg = composed("algo=sft_m", f"teacher={file.stem}", f"teacher.file={tmp_path}/traces.jsonl")
        validate(cfg)
        if not cfg.teacher.path.startswith("/"):
            cfg.teacher.path = TINY
        sampler = instantiate(cfg.algo.train_sampler)(tokenizer=tokenizer, reward=instantiate(cfg.reward))
        settings = {k: v for k, v in cfg.teacher.items() if k not in ("name", "file")}
        assert vars(sampler.teacher) == settings
        assert sampler.traces.path == tmp_path / "traces.jsonl"


def test_each_part_can_be_overridden_alone():
    cfg = composed("algo=dash", "filter=none", "batch.sample_prompts=4")
    assert cfg.filter._target_ == "dash_exp.algorithms.filters.KeepAll"
    assert cfg.batch.sample_prompts == 4
    assert composed("filter.threshold=0.3").filter.threshold == 0.3
    assert composed("data=gsm8k").reward._target_ == "dash_exp.rewards.math.MathReward"
    assert composed("data=gsm8k", "reward=exact").reward._target_ == "dash_exp.rewards.exact.ExactReward"


@pytest.mark.parametrize(
    ("overrides", "cap"),
    [
        ("", None),
        ("rollout=vllm", None),
        ("rollout=vllm rollout.staleness=1", 2.0),
        ("rollout=vllm rollout.refresh_every=4", 2.0),
        ("rollout=vllm rollout.staleness=1 algo=ppo_multi", None),  # its loss has the ratio
        ("rollout=vllm rollout.staleness=1 rollout.importance_cap=null", None),
        ("rollout.importance_cap=3", 3),
    ],
)
def test_where_weights_are_old_the_ratio_enters_the_loss(overrides, cap):
    assert importance_cap(composed(*overrides.split())) == cap


@pytest.mark.gpu
def test_the_gpu_trainer_instantiates():
    assert instantiate(composed("trainer=gpu").trainer, logger=False).num_devices == 1


def test_without_a_gpu_the_gpu_trainer_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no GPU"):
        run.run(composed("trainer=gpu"), tmp_path)


# --- sweeps ------------------------------------------------------------------------------------------------------------

SWEEPS = sorted(f.stem for f in (ROOT / "sweeps").glob("*.yaml"))
SEARCHES = {"learning_rate"}
NEED_VLLM = {"staleness"}


@cache
def cells(sweep: str, *overrides: str) -> list[DictConfig]:
    """The configurations of a sweep's cells, as `python train.py -cd sweeps -cn SWEEP` makes them, of one seed alone."""
    with initialize_config_dir(str(ROOT / "sweeps"), version_base="1.3"):
        at = [f"hydra.searchpath=[file://{CONF}]", *overrides]
        master = compose(sweep, overrides=at, return_hydra_config=True)
        params = [f"{k}={v}" for k, v in master.hydra.sweeper.params.items() if k != "seed"]
        assert master.hydra.sweeper.params.seed == "0,1,2"
        parsed = OverridesParser.create().parse_overrides(number_of_kl(params))
        return [compose(sweep, overrides=[*at, *cell]) for cell in BasicSweeper.split_arguments(parsed, None)[0]]


def swept(sweep: str, key: str, *overrides: str) -> list:
    return list(dict.fromkeys(OmegaConf.select(cfg, key) for cfg in cells(sweep, *overrides)))


@pytest.mark.parametrize("sweep", [pytest.param(s, marks=needs_vllm) if s in NEED_VLLM else s for s in SWEEPS])
def test_every_sweep_composes_into_cells_that_pass(sweep):
    if sweep in SEARCHES:
        with initialize_config_dir(str(ROOT / "sweeps"), version_base="1.3"):
            validate(compose(sweep, overrides=[f"hydra.searchpath=[file://{CONF}]"]))
        return
    found = cells(sweep)
    assert len(found) > 1
    for cfg in found:
        validate(cfg)
        assert cfg.study.question.endswith("?")
        assert (cfg.model.name, cfg.data.name, cfg.trainer.accelerator) == ("tiny", "arithmetic", "cpu")  # on code too
        assert cfg.name == f"{sweep}-small"


SIZES = {"qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B", "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B", "qwen2.5-3b": "Qwen/Qwen2.5-3B"}
ALL = list(SIZES)
PAPER = {  # sweep: data, models
    "sft_vs_rl_math": ("math", ALL),
    "sft_vs_rl_code": ("mbpp_plus", ALL[:2]),
    "efficiency_math": ("math", ALL[:1]),
    "efficiency_code": ("mbpp_plus", ALL[:1]),
    "off_policy": ("math", ALL[:2]),
    "kl": ("math", ALL),
    "pass_at_k": ("math", ALL[2:]),
}


@needs_vllm
@pytest.mark.parametrize("sweep", [s for s in SWEEPS if s not in SEARCHES])
def test_at_the_papers_scale_every_sweep_has_its_numbers(sweep):
    """The hyper-parameters of arXiv 2505.17218: M = 256 in groups of 4, learning rate 3e-6, 3 passes, 256 + 2048 tokens."""
    found = cells(sweep, "+scale=paper")
    data, models = PAPER.get(sweep, ("math", ALL[:1]))
    assert list(dict.fromkeys(cfg.model.name for cfg in found)) == models
    for cfg in found:
        validate(cfg)
        OmegaConf.resolve(cfg.copy())  # as --cfg job --resolve does
        assert cfg.name == f"{sweep}-paper"
        assert cfg.data.name == data
        assert cfg.model.path == SIZES[cfg.model.name]
        assert (cfg.trainer.accelerator, cfg.rollout.sampler._target_) == ("gpu", "dash_exp.sampling.vllm.VLLMSampler")
        assert (cfg.batch.prompts, cfg.batch.group_size) == (64, 4)  # M = 256
        assert cfg.optimizer.lr == 3e-6
        assert (cfg.model.dtype, cfg.model.compute_dtype, cfg.model.gradient_checkpointing) == ("float32", "bfloat16", True)
        if data == "math":
            assert (cfg.rollout.max_response_tokens, cfg.data.max_prompt_tokens) == (2048, 256)
            assert cfg.steps == {"batch_sizes": 10, "long_run": 2244}.get(sweep, 561)  # 3 x (12,000 // 64)
        if cfg.algo.name.startswith("sft"):
            assert cfg.algo.group_size == 1
            assert cfg.teacher.path == "Qwen/Qwen2.5-7B-Instruct"


@pytest.mark.parametrize("sweep", [pytest.param(s, marks=needs_vllm) if s in NEED_VLLM else s for s in SWEEPS])
def test_at_the_scale_of_smollm2_every_sweep_has_its_numbers(sweep):
    """128 completions in groups of 8, on problems that the model solves now and then."""
    scale = "+scale=smollm2"
    if sweep in SEARCHES:
        with initialize_config_dir(str(ROOT / "sweeps"), version_base="1.3"):
            found = [compose(sweep, overrides=[f"hydra.searchpath=[file://{CONF}]", scale])]
    else:
        found = cells(sweep, scale)
    for cfg in found:
        validate(cfg)
        OmegaConf.resolve(cfg.copy())  # as --cfg job --resolve does
        assert cfg.name == f"{sweep}-smollm2"
        is_code = sweep in ("efficiency_code", "sft_vs_rl_code")
        assert (cfg.model.name, cfg.teacher.name) == ("smollm2-135m", "itself")
        of_sums = "SumReward" if sweep == "rewards" else "ReasoningGymReward"
        assert (cfg.data.get("task"), cfg.reward._target_.rpartition(".")[2]) == (
            (None, "CodeReward") if is_code else ("chain_sum", of_sums)
        )
        assert cfg.batch.prompts * cfg.batch.group_size == 128
        needed = cfg.batch.prompts * cfg.steps
        assert needed <= cfg.data.train.size if is_code else needed == cfg.data.train.takes
        assert cfg.optimizer.lr == 2e-5
        assert cfg.steps == {"batch_sizes": 8, "long_run": 80}.get(sweep, 20)
        assert (cfg.model.compute_dtype, cfg.checkpoints) == ("bfloat16", ["last"])
        evaluations, tests = (
            1 + cfg.steps // cfg.eval.every,
            (min(t.size, cfg.eval.limit or t.size) for t in cfg.data.tests.values()),
        )
        most = 5 if sweep == "pass_at_k" else 2  # times as much as in training, or other runs would be evaluation above all
        assert evaluations * sum(tests) * (1 + cfg.eval.n) <= most * 128 * cfg.steps


@pytest.mark.parametrize("scale", ["", "+scale=smollm2", "+scale=paper"])
@pytest.mark.parametrize("sweep", [pytest.param(s, marks=needs_vllm) if s in NEED_VLLM else s for s in SWEEPS])
def test_every_claim_is_on_arms_that_the_sweep_has(sweep, scale):
    with initialize_config_dir(str(ROOT / "sweeps"), version_base="1.3"):
        at = [f"hydra.searchpath=[file://{CONF}]", *([scale] if scale else [])]
        params = compose(sweep, overrides=at, return_hydra_config=True).hydra.sweeper.params
        cfg = compose(sweep, overrides=at)
    swept_values: dict[str, set[str]] = {}
    for key, value in params.items():
        key, values = claims.values_of(f"{key}={value}")
        swept_values[key] = set(values)
    for claim in claims.of(cfg):
        for override in (*claim.arm, *claim.against):
            key, values = claims.values_of(override)
            assert override == claims.BASE or set(values) <= swept_values.get(key, set()), f"{sweep}: {override}"


def test_the_swept_values_are_those_of_the_paper():
    assert swept("efficiency_math", "algo.name") == swept("efficiency_code", "algo.name") == ["grpo", "no_gf", "dash"]
    assert swept("sft_vs_rl_math", "algo.name") == ["dash", "sft_h", "sft_m"]
    assert swept("sft_vs_rl_code", "algo.name") == ["dash", "sft_h"]
    assert swept("off_policy", "algo.name") == ["dash", "ppo_multi", "ppo_mini"]
    assert swept("off_policy", "budget.match") == ["seconds"]
    assert swept("off_policy", "batch.minibatches") == [1, 32]
    assert swept("off_policy", "batch.epochs") == [1, 3]
    assert swept("kl", "kl.coef") == [0.04, 0]
    assert swept("gradient_filtering", "filter._target_") == [
        "dash_exp.algorithms.filters.KeepAll",
        "dash_exp.algorithms.filters.AdvantageAbove",
    ]
    assert {cfg.filter.threshold for cfg in cells("gradient_filtering") if cfg.algo.name == "dash"} == {0.1}
    assert {(cfg.eval.n, tuple(cfg.eval.k)) for cfg in cells("pass_at_k", "+scale=paper")} == {
        (512, (1, 2, 4, 8, 16, 32, 64, 128, 256, 512))
    }
    assert {(cfg.eval.n, tuple(cfg.eval.k)) for cfg in cells("efficiency_code", "+scale=paper")} == {(8, (1, 8))}


def test_every_ablation_of_the_paper_and_the_studies_it_leaves_open_are_there():
    paper = "sft_vs_rl_math sft_vs_rl_code efficiency_math efficiency_code off_policy kl gradient_filtering pass_at_k"
    open_ = "filter_threshold batch_sizes kl_schedules staleness filters_compared prompt_selection long_run rewards"
    assert sorted([*paper.split(), *open_.split(), *SEARCHES]) == SWEEPS
