from contextlib import nullcontext

import pytest
from conftest import SMALL, composed
from hydra.utils import instantiate
from json_lines import write

from dash_exp.commands import build
from dash_exp.commands.prompting import form_of
from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem, Prompt
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.traces import TraceSampler, behind


def test_white_space_divides_a_prompt_and_its_solution_once():
    assert behind("How many?", "Two.", "\n") == "\nTwo."
    assert behind("How many?\n", "Two.", "\n") == "Two."
    assert behind("How many?", " Two.", "\n") == " Two."
    assert behind("3+4=", "7", "") == "7"


def text(tokenizer, sampler, prompt, solution):
    (completion,) = sampler.sample([Prompt(Problem("p", prompt, "2", solution), (5,))], 1, Sampling(20), (0, 0))
    return tokenizer.decode(completion.ids)


def test_a_trace_ends_once_and_its_separator_is_a_setting(tokenizer):
    assert text(tokenizer, TraceSampler(tokenizer, separator="\n"), "1+1?", "A:2") == "\nA:2<eos>"
    assert text(tokenizer, TraceSampler(tokenizer), "1+1?", "A:2") == "A:2<eos>"
    assert text(tokenizer, TraceSampler(tokenizer), "1+1?", "A:2<eos>") == "A:2<eos>"


OWN = ["data=jsonl", "data.solution=why"]


@pytest.mark.parametrize(
    ("data", "row", "prompt", "solution"),
    [
        (["data=gsm8k"], {"question": "1+1?", "answer": "It is <<1+1=2>>2.\n#### 2"}, "1+1?", "\nIt is 2.\n#### 2<eos>"),
        (
            ["data=math", "data.train.split=train"],
            {"problem": "1+1?", "solution": r"It is \boxed{2}."},
            "1+1?",
            "\nIt is \\boxed{2}.<eos>",
        ),
        (OWN, {"prompt": "1+1?", "answer": "2", "why": "A:2"}, "1+1?", "\nA:2<eos>"),
        (OWN, {"prompt": "1+1?\nAnswer: ", "answer": "2", "why": "A:2"}, "1+1?\nAnswer: ", "A:2<eos>"),
        ([*OWN, "data.separator=' '"], {"prompt": "1+1?", "answer": "2", "why": "A:2"}, "1+1?", " A:2<eos>"),
        ([*OWN, "data.separator=null"], {"prompt": "1+1?", "answer": "2", "why": "A:2"}, "1+1?", "A:2<eos>"),
        (
            ["data=mbpp"],
            {"text": "Give 1.", "code": "def f(): return 1", "task_id": 601, "test_list": ["assert f() == 1"]},
            "Give 1.\nThe program must pass these tests:\nassert f() == 1\n",
            "def f(): return 1<eos>",
        ),
    ],
)
def test_what_sft_learns_of_each_data_set(data, row, prompt, solution, tokenizer, tmp_path):
    """The prompt is that of RL and of evaluation, without the separator."""
    cfg = composed(*data, "algo=sft_h")
    cfg.data.path = write(tmp_path / "d", [row])
    (problem,) = instantiate(cfg.data.train)
    assert problem.prompt == prompt
    sampler = instantiate(cfg.algo.train_sampler)(tokenizer=tokenizer, reward=None)
    (completion,) = sampler.sample([Prompt(problem, (5,))], 1, Sampling(99), (0, 0))
    assert tokenizer.decode(completion.ids) == solution


def test_a_problem_without_a_solution_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    for split in ("train", "test"):
        write(tmp_path, [{"prompt": f"{split} {i}", "answer": "1"} for i in range(8)], f"{split}.jsonl")
    monkeypatch.setattr(build, "load_policy", lambda cfg: pytest.fail("the model was loaded"))
    small = [o for o in SMALL if ".size" not in o]
    with pytest.raises(UserError, match=r"^problem train/1: has no solution to train on\. .*data\.solution"):
        build.build(composed(*small, "data=jsonl", "algo=sft_h", f"data.path={tmp_path}", "reward=exact"))


@pytest.mark.parametrize(
    ("prompt", "solution", "fits"),
    [
        ("prompt=think", "1+1=2.\n#### 2", False),
        ("prompt=think", "1+1=2.</think>\n#### 2", True),
        ("prompt=think", "<think>1+1=2.</think>\n#### 2", True),
        ("prompt=bare", "1+1=2.\n#### 2", True),
        ("prompt.prefill='So: '", "1+1=2.\n#### 2", True),
    ],
)
def test_solutions_that_a_begun_thought_would_hide_are_refused(prompt, solution, fits, tokenizer, tmp_path):
    rows = [{"question": f"1+1? {i}", "answer": solution} for i in range(4)]
    for split in ("train", "test"):
        write(tmp_path, [row | {"question": f"{split} {row['question']}"} for row in rows], f"{split}.jsonl")
    cfg = composed("data=gsm8k", f"data.path={tmp_path}", "algo=sft_h", prompt, "reward.workers=1")
    problems = instantiate(cfg.data.train)
    reward = instantiate(cfg.reward)
    sampler = instantiate(cfg.algo.train_sampler)(tokenizer=tokenizer, reward=reward)
    prompts = form_of(cfg, tokenizer, frozenset()).prompts(problems, tokenizer, ())
    try:
        with nullcontext() if fits else pytest.raises(UserError, match=r"^problem .*'<think>', .* 0\. .*</think>.*prompt=bare"):
            sampler.check_prompts(prompts)
    finally:
        reward.close()
    if not fits:  # so a run with them does not start
        small = [o for o in SMALL if ".size" not in o]
        with pytest.raises(UserError, match=r"^problem .*'<think>'"):
            build.build(composed(*small, "data=gsm8k", f"data.path={tmp_path}", "algo=sft_h", prompt, "reward.workers=1"))
