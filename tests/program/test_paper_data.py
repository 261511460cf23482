"""The paper's set-ups start on rows as the published files have them: one step of each, with a policy of random weights."""

import copy
import json
from functools import cache

import pytest
from conftest import NANO_MODEL, composed, save_scorer
from json_lines import write
from omegaconf import OmegaConf

from dash_exp.commands import ending, run
from dash_exp.rewards.math import MathReward
from dash_exp.sampling.hf import HFSampler

from .test_config import SEARCHES, SWEEPS, cells

SOLUTIONS = [f"One and {i} are $\\boxed{{{i + 1}}}.$" for i in range(8)]
SOLUTIONS += [r"The sum is $\boxed 2.$", r"So it is $\boxed {17}.$", r"This is $\fbox{3}.$"]  # TeX takes a token or a group
SOLUTIONS += [r"Both $\boxed{30}$ and $\boxed{150}$.", r"Half: $\boxed{\frac12}.$"]
UNANSWERED = [r"The answer is $\boxed{}.$", "There is no box."]
CODE = "sft_vs_rl_code", "efficiency_code", "long_run"
SWEPT = [pytest.param(s, marks=pytest.mark.needs("bubblewrap") if s in CODE else ()) for s in SWEEPS if s not in SEARCHES]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders with rows in the forms of MATH, MATH-500, GSM8K and MBPP+, and a reward model. MATH-500 is a part of MATH's test
    split."""
    folder = tmp_path_factory.mktemp("data")
    save_scorer(folder / "judge")
    math = {
        split: [
            {"problem": f"{split} {i}?", "solution": s, "level": "Level 1", "type": "Algebra"} for i, s in enumerate(solutions)
        ]
        for split, solutions in {"train": [*SOLUTIONS, *UNANSWERED], "test": SOLUTIONS}.items()
    }
    for split, rows in math.items():
        write(folder / "math", rows, f"{split}.jsonl")
        write(folder / "gsm8k", [{"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\n#### 4"}], f"{split}.jsonl")
    math_500 = [
        {"problem": f" {row['problem']}\n", "solution": "", "answer": "2", "subject": "Algebra"} for row in math["test"][:3]
    ]
    write(
        folder / "math500",
        [row | {"unique_id": f"test/{i}", "solution": "So."} for i, row in enumerate(math_500)],
        "test.jsonl",
    )
    program = {"prompt": "Give 1.", "code": "def f():\n    return 1", "test_imports": [], "test": "assert f() == 1"}
    tasks = [program | {"prompt": f"Give {i}.", "task_id": i, "test_list": ["assert f() == 1"]} for i in (2, 3, 11, 602, 603)]
    write(folder / "mbpp_plus", tasks, "mbpp_plus.jsonl")
    return folder


class OwnWeights(HFSampler):
    """In place of vLLM: a sampler that has weights of its own, which may be old."""

    def __init__(self, policy, **settings):
        super().__init__(copy.deepcopy(policy), **settings)

    def load_weights(self, weights, version):
        super().load_weights(weights, version)
        self.policy.load_state_dict(weights, strict=False)


shared = []


@cache
def math_reward(**settings):
    """The reward of MATH, whose processes take seconds to start: all runs here share them."""
    shared.append(MathReward(**settings))
    shared[-1].close = lambda: None
    return shared[-1]


def small(cfg, data):
    """The settings of a cell with little to do: one step of 4 prompts. What it asks about stays as it is."""
    ours = composed("model=tiny_random", "trainer=cpu", "teacher=tiny", "logger=csv", *NANO_MODEL)
    cfg = OmegaConf.merge(cfg)  # a copy that takes any key
    OmegaConf.set_struct(cfg, False)
    for part in ("model", "trainer", "teacher", "logger", "name"):
        cfg[part] = ours[part]
    cfg.teacher.file = str(data / f"traces-{cfg.data.name}.jsonl")
    cfg.budget.match = None  # another run of the sweep gives the limit
    cfg.rollout.sampler = ours.rollout.sampler
    cfg.rollout.sampler._target_ = f"{__name__}.OwnWeights"
    cfg.rollout.max_response_tokens = 8
    for test in cfg.data.tests.values():
        if "max_response_tokens" in (test or {}):
            test.max_response_tokens = 12
    parts = cfg.reward.get("parts", {})
    for reward in (cfg.reward, *parts.values()):
        if reward._target_ == "dash_exp.rewards.math.MathReward":
            reward._target_ = f"{__name__}.math_reward"
    if "judge" in parts:
        parts.judge.path = str(data / "judge")
    cfg.steps, cfg.batch.prompts = 1, 4
    cfg.batch.minibatches = min(cfg.batch.minibatches, 2)
    if cfg.batch.sample_prompts is not None:
        cfg.batch.sample_prompts = max(cfg.batch.sample_prompts * 4 // 64, 1)
    cfg.eval.every = 1
    if cfg.eval.n > 2:
        cfg.eval.n, cfg.eval.k = 2, [k for k in cfg.eval.k if k <= 2]
    if cfg.data.name in ("reasoning_gym", "programs"):
        cfg.data.train.size = 8
        for test in cfg.data.tests.values():
            test.size = 2
    else:
        cfg.data.path = str(data / cfg.data.name)
    if cfg.data.name == "math":
        cfg.data.math500_path, cfg.data.gsm8k_path = str(data / "math500"), str(data / "gsm8k")
        if "other" in cfg.data.tests:
            cfg.data.tests.other.path = str(data / "mbpp_plus")
    return cfg


@pytest.fixture(scope="module")
def start(data, tmp_path_factory):
    """Runs the small form of a cell, each form once, with the references that its settings have; the folder of the run."""
    folders = {}

    def started(cfg):
        folder = tmp_path_factory.mktemp("run")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ending, "plot_curves", lambda *_: None)  # which takes as long as the rest
            assert run.run(cfg, folder)["status"] == "done"
        return folder

    def start(cell):
        cfg = small(cell, data)
        text = json.dumps({k: v for k, v in OmegaConf.to_container(cfg, resolve=True).items() if k != "study"})
        if text not in folders:
            folders[text] = started(cfg)
        return folders[text]

    yield start
    for reward in shared:
        MathReward.close(reward)


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_experiment_paper_math_starts(start):
    result = result_of(start(composed("experiment=paper_math")))
    assert result["sizes/train_problems"] == 2 * len(SOLUTIONS) - 3  # both splits without those of MATH-500
    assert {"accuracy/in_dist/final", "accuracy/out_dist/final"} <= result.keys()


@pytest.mark.parametrize("sweep", SWEPT)
def test_every_cell_at_the_papers_scale_starts(sweep, start):
    for cell in cells(sweep, "+scale=paper", "study.paper.models=qwen2.5-0.5b"):
        folder = start(cell)
        result = result_of(folder)
        is_math = cell.data.name == "math"
        assert result["sizes/train_problems"] == (2 * len(SOLUTIONS) - 3 if is_math else 4)
        assert {f"accuracy/{test}/final" for test in (["in_dist", "out_dist"] if is_math else ["in_dist"])} <= result.keys()
        if cell.algo.name == "sft_h":
            rows = [json.loads(line) for line in (folder / "completions" / "step_00001.jsonl").read_text().splitlines()]
            assert all(row["completion"].startswith("\n") == is_math for row in rows)  # a prompt of MBPP ends with a line break


@pytest.mark.needs("gym")
@pytest.mark.parametrize("sweep", SWEPT)
def test_every_cell_at_the_scale_of_smollm2_starts(sweep, start):
    for cell in cells(sweep, "+scale=smollm2"):
        result = result_of(start(cell))
        assert {"accuracy/in_dist/final", "accuracy/out_dist/final"} <= result.keys()
