import json

import pytest
from json_lines import write

from dash_exp.core.errors import UserError
from dash_exp.data import humaneval
from dash_exp.data.prompt_form import PromptForm
from dash_exp.rewards.base import check_problems
from dash_exp.rewards.code import CodeReward

HELPER = "import math\n\n\ndef spread(n: float) -> int:\n    return 2 * math.floor(n) + 1\n\n\n"
ROWS = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """ The sum of xs.\n    """\n',
        "canonical_solution": "    return sum(xs)\n",
        "test": "\nMETADATA = {}\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
        "entry_point": "total",
    },
    {  # as in HumanEval/32, 38 and 50, the tests use a function of the prompt
        "task_id": "HumanEval/1",
        "prompt": HELPER + 'def narrow(n: int) -> int:\n    """ The opposite of spread.\n    """\n',
        "canonical_solution": "    return math.floor((n - 1) / 2)\n",
        "test": "def check(candidate):\n    for n in range(9):\n        assert candidate(spread(n)) == n\n",
        "entry_point": "narrow",
    },
]


@pytest.fixture
def problems(tmp_path):
    return humaneval.load(write(tmp_path / "humaneval", ROWS, "HumanEval.jsonl"))


def test_rows_become_code_to_continue_or_a_request_in_a_chat(problems, tokenizer):
    first, second = problems
    assert (first.id, first.prompt, first.solution) == ("HumanEval/0", ROWS[0]["prompt"], "    return sum(xs)\n")
    assert first.tests == ("from typing import List\n\n\n", ROWS[0]["test"], "check(total)")
    assert second.tests[0] == HELPER
    (prompt,) = PromptForm().prompts([first], tokenizer)
    assert tokenizer.decode(list(prompt.ids)) == ROWS[0]["prompt"]
    ((role, asked),) = first.messages
    assert role == "user" and asked.startswith("Complete this Python function.")
    assert f"```python\n{ROWS[0]['prompt']}```" in asked


def test_a_folder_a_file_and_the_hub_give_the_same_problems(problems, tmp_path, monkeypatch):
    assert humaneval.load(write(tmp_path / "other", ROWS, "test.jsonl")) == problems
    assert humaneval.load(str(tmp_path / "humaneval" / "HumanEval.jsonl")) == problems
    hub = {("openai/openai_humaneval", None, "test"): ROWS}
    monkeypatch.setattr("datasets.load_dataset", lambda path, name, split: hub[path, name, split])
    assert humaneval.load("openai/openai_humaneval") == problems


@pytest.mark.parametrize(
    "answers",
    [
        [row["canonical_solution"] for row in ROWS],
        [row["prompt"] + row["canonical_solution"] for row in ROWS],
        ["```\ndef total(xs: List[int]):\n    return sum(xs)\n```", "So:\n```python\ndef narrow(n):\n    return n // 2\n```"],
    ],
    ids=["the body", "all of the code", "the function in a block, without import and helper"],
)
def test_both_styles_of_completion_are_graded_right(bubblewrap, problems, answers):
    reward = CodeReward(timeout_s=20)
    check_problems(reward, problems)
    scores = reward([*problems, *problems], [*answers, "    return 0\n", "```python\ndef narrow(n):\n    return n\n```"])
    assert (scores.rewards, scores.errors) == ([1, 1, 0, 0], 0)


def test_a_program_cannot_replace_what_its_tests_use(bubblewrap, problems):
    cheat = "```python\ndef spread(n):\n    return n\ndef narrow(n):\n    return n\n```"
    assert CodeReward(timeout_s=20)(problems[1:], [cheat]).rewards == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entry_point": "sum_up"}, r"line 1, field prompt: has no function sum_up"),
        ({"test": "assert total([]) == 0"}, r"line 1, field test: has no function check"),
        ({"prompt": " "}, r"line 1, field prompt: is ' '"),
        ({"canonical_solution": None}, r"line 1, field canonical_solution: is None"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        humaneval.load(write(tmp_path / "d", [json.dumps(ROWS[0] | change)], "test.jsonl"))
