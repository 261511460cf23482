"""The paper's set-ups start on rows as the published files have them."""

from functools import cache

import pytest
from conftest import NANO_MODEL, composed
from json_lines import write
from omegaconf import OmegaConf

from dash_exp.commands import build, run
from dash_exp.data.prompts import tokenized
from dash_exp.sampling.base import Sampling

from .test_config import SEARCHES, SWEEPS, cells

SOLUTIONS = [f"One and {i} are $\\boxed{{{i + 1}}}.$" for i in range(8)]
SOLUTIONS += [r"The sum is $\boxed 2.$", r"So it is $\boxed {17}.$", r"This is $\fbox{3}.$"]  # TeX takes a token or a group
UNANSWERED = [r"The answer is $\boxed{}.$", "There is no box."]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders with rows in the forms of MATH, GSM8K and MBPP+."""
    folder = tmp_path_factory.mktemp("data")
    for split, solutions in {"train": [*SOLUTIONS, *UNANSWERED], "test": SOLUTIONS}.items():
        row = {"level": "Level 1", "type": "Algebra"}
        math = [{"problem": f"{split} {i}?", "solution": s, **row} for i, s in enumerate(solutions)]
        write(folder / "math", math, f"{split}.jsonl")
        write(folder / "gsm8k", [{"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\n#### 4"}], f"{split}.jsonl")
    program = {"prompt": "Give 1.", "code": "def f():\n    return 1", "test_imports": [], "test": "assert f() == 1"}
    tasks = [program | {"prompt": f"Give {i}.", "task_id": i, "test_list": ["assert f() == 1"]} for i in (2, 3, 11, 602)]
    write(folder / "mbpp_plus", tasks, "mbpp_plus.jsonl")
    return folder


def test_experiment_paper_math_runs(data, tmp_path):
    small = ["steps=1", "batch.prompts=4", "batch.group_size=2", "rollout.max_response_tokens=8", "logger=csv", "trainer=cpu"]
    here = [f"data.path={data}/math", f"data.gsm8k_path={data}/gsm8k"]
    result = run.run(composed("experiment=paper_math", "model=tiny_random", *NANO_MODEL, *small, *here), tmp_path)
    assert result["status"] == "done"
    assert result["sizes/train_problems"] == len(SOLUTIONS)
    assert {"accuracy/in_dist/final", "accuracy/out_dist/final"} <= result.keys()


@cache
def problems(data, text):
    """Training problems and test sets of the settings in this text; of many cells the same."""
    return build.problems(OmegaConf.create(text))


@pytest.mark.parametrize("sweep", [s for s in SWEEPS if s not in SEARCHES])
def test_every_cell_at_the_papers_scale_has_its_data(sweep, data, tokenizer):
    for cfg in cells(sweep, "+scale=paper"):
        settings = OmegaConf.create({"data": cfg.data, "eval": cfg.eval})
        settings.data.path = str(data / cfg.data.name)
        if "gsm8k_path" in settings.data:
            settings.data.gsm8k_path = str(data / "gsm8k")
        train, tests = problems(data, OmegaConf.to_yaml(settings, resolve=True))
        assert len(train) == {"math": len(SOLUTIONS), "mbpp_plus": 3}[cfg.data.name]
        assert [*tests] == (["in_dist", "out_dist"] if cfg.data.name == "math" else ["in_dist"])
        prompts = tokenized(train, tokenizer, 32768, cfg.rollout.max_response_tokens, "data.train", cfg.data.max_prompt_tokens)
        if cfg.algo.name == "sft_h":
            sampler = build.made(cfg, "algo.train_sampler", {"tokenizer": tokenizer, "reward": None})
            sampler.check(train)
            traces = sampler.sample(prompts, 1, Sampling(cfg.rollout.max_response_tokens), (0, 0))
            starts_new_line = [tokenizer.decode(c.ids).startswith("\n") for c in traces]
            assert starts_new_line == [cfg.data.name == "math"] * len(train)  # a prompt of MBPP ends with a line break
