"""Thoughts and answer tags, in every reward that reads an answer."""

import time

import pytest
from problems import DOUBLE

from dash_exp.core.types import Problem
from dash_exp.rewards.code import CodeReward, _program
from dash_exp.rewards.grading import math_answer, math_equal
from dash_exp.rewards.reasoning_gym import read
from dash_exp.rewards.tags import answer_part, in_answer_tag, without_thought


@pytest.mark.parametrize(
    ("text", "said", "tagged"),
    [
        ("It is 12.", "It is 12.", None),
        ("<think>5</think>\n12", "\n12", None),
        ("5</think> 6 <think>7</think> 12", " 12", None),
        ("<think>5", "", None),
        ("So <think>5", "", None),
        ("<think>5</think> 12 <think>", "", None),
        ("<think><answer>5</answer></think> 12", " 12", None),
        ("<think>5</think><answer> 12\n</answer>.", "<answer> 12\n</answer>.", " 12\n"),
        ("<answer>5</answer><answer></answer>", "<answer>5</answer><answer></answer>", ""),
        ("<answer>5<answer>12</answer>7</answer>", "<answer>5<answer>12</answer>7</answer>", "12"),
        ("<answer>12", "<answer>12", None),
        ("12</answer>", "12</answer>", None),
    ],
)
def test_the_parts_of_a_completion(text, said, tagged):
    assert without_thought(text) == said
    assert in_answer_tag(said) == tagged
    assert answer_part(text) == (said if tagged is None else tagged)


TAGGED = [
    r"\frac{1}{2}",
    "x+1",
    "(1,2)",
    r"\sqrt{2}",
    "x^2+1",
    r"2\pi",
    "Paris",
    "New York",
    "[-2,7]",
    "5!",
    "12",
    "x = 5",
    "3 and 4",
    "12 apples",
    "$12$.",
]


@pytest.mark.parametrize("answer", TAGGED)
@pytest.mark.parametrize(
    "form",
    [
        "<think>Let x be 3.</think><answer>{}</answer>",
        "Perhaps 3.</think>\n\n<answer>\n{}\n</answer>",
        "<think>3</think> <answer>So \\boxed{{{}}}</answer>",
    ],
)
def test_what_is_in_the_tag_is_the_answer_as_in_a_box(answer, form):
    assert math_equal(answer, form.format(answer))
    assert not math_equal("3", form.format(answer))
    assert math_answer(form.format(answer)) == math_answer(rf"\boxed{{{answer}}}")


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("12", "<think>So the answer is 5. Wait.</think>\n<answer>12</answer>", True),
        ("12", "<think>So the answer is 5. Wait, no.</think>\n\n**12**", True),
        ("5", "<think>So the answer is 5. Wait, no.</think>\n\n**12**", False),
        ("5", "<think>So the answer is 5.</think> She has 12 apples.", False),
        ("5", r"<think>\boxed{5}</think> She has 12 apples.", False),
        ("12", "<think>\nperhaps 12", False),
        ("12", r"<think>\boxed{12}", False),
        ("6", "<answer>6 or 7</answer>", False),
        ("2", r"<answer>\frac{1}{2}</answer>", False),
        ("<think>12", "12", False),  # a gold answer is read as it is
    ],
)
def test_a_thought_is_not_graded(gold, text, right):
    assert math_equal(gold, text) is right


def test_a_thought_has_no_vote():
    assert math_answer("<think>5</think> 12") == "12"
    assert math_answer("<think>12") is None


@pytest.mark.parametrize("answer", ["12", "olleh"])
def test_reasoning_gym_reads_the_same_parts(answer):
    assert read(f"<think>5</think><answer> {answer} </answer>", answer) == answer
    assert read(f"<think>5</think>{answer}", answer) == answer
    assert read(f"<think>{answer}", answer) is None


RIGHT, WRONG = "def double(x):\n    return 2 * x\n", "def double(x):\n    return x\n"


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (f"<think>\n```python\n{WRONG}```\n</think>\n{RIGHT}", 1),
        (f"<think>\n```python\n{RIGHT}```\n</think>\n{WRONG}", 0),
        (f"<think>\n```python\n{RIGHT}```\n</think>\nI do not know.", 0),
        (f"<think>\n```python\n{RIGHT}```\n", 0),
        (f"<think>So.</think><answer>{RIGHT}</answer>", 1),
        (f"<think>So.</think><answer>```python\n{RIGHT}```</answer>", 1),
    ],
)
def test_a_program_in_a_thought_is_not_run(text, reward):
    assert CodeReward("process", timeout_s=5, workers=1)([DOUBLE], [text]).rewards == [reward]


def test_a_begun_program_goes_on_behind_the_thought():
    begun = "def f(x):\n    '''Double.'''\n"
    problem = Problem("p", begun, "", extra={"continues": begun, "entry_point": "f"})
    for said in ("\n    return 2 * x\n", "<answer>    return 2 * x</answer>"):
        assert _program(problem, f"<think>return x</think>{said}") == begun + "    return 2 * x\n"


def test_many_tags_take_linear_time():
    texts = [tag * 200_000 for tag in ("<think>", "</think>", "<answer>", "</answer>", "<answer></answer>", "<think></think>")]
    start = time.process_time()
    for text in texts:
        answer_part(text)
    assert time.process_time() - start < 1
