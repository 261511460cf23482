import pytest
from conftest import SMALL, composed
from hydra.utils import instantiate
from json_lines import write

from dash_exp.commands import build
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
