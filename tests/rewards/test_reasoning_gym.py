import hostile
import pytest

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.data import reasoning_gym
from dash_exp.rewards import puzzles
from dash_exp.rewards.base import check_problems, correct
from dash_exp.rewards.reasoning_gym import ReasoningGymReward, read

pytestmark = pytest.mark.needs("gym")


@pytest.fixture(scope="module")
def reward():
    found = ReasoningGymReward(timeout_s=20, workers=1)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("answer", "text", "found"),
    [
        ("12", "5 + 7 = 12", "12"),
        ("12", "The sum of 5 and 7 is 12.", "12"),
        ("12", "<answer> 13 </answer> no, <answer> 12\n</answer> as 5 + 7 = 12 and not 13", "12"),
        ("12", "<answer>13<answer>12</answer> is right</answer><answer>14", "12"),
        ("12", "<answer>" * 99_999 + "12", "12"),  # in a time that a run can wait for
        ("1234", "So the answer is 1,234 apples. There were 5 of them.", "1234"),
        ("-12", "5 - 17 = -12", "-12"),
        ("-12", "5 - 17 = − 12", "-12"),
        ("12", "5 - 17 - 12", "12"),  # a difference has no sign
        ("12.5", "it costs $12.50 each", "12.50"),
        ("3/4", "which simplifies to 3/4.", "3/4"),
        ("12", "so \\boxed{12}, since 3 * 4 = 12", "12"),
        ("12", "<think>maybe 13</think>\nIt is 12", "12"),
        ("12", "<think>maybe <answer>13</answer></think> twelve", "twelve"),
        ("12", "<think>maybe 12", None),
        ("12", " ", None),
        ("12", "no number", "no number"),
        ("olleh", "olleh\n", "olleh"),
        ("olleh", 'The answer is "olleh".', "olleh"),
        ("True", "Let us see.\n**Answer:** True\nbecause they match", "True"),
        ("a b.", "The answer is: a b.", "a b."),
        ("a\nb", "the answer is\na\nb", "the answer is\na\nb"),  # of several lines nobody knows where they end
        ("$\\frac{3}{4}$", "it simplifies to $\\frac{3}{4}$.", "\\frac{3}{4}"),
        ("1e-5", "about 1e-05", "1e-05"),
        ("olleh", "Backward: \\boxed{olleh}", "olleh"),
        ("Move disk 1", "Move disk 1", "Move disk 1"),  # the 1 is no answer
        ("[1, 2]", "[1, 2]", "[1, 2]"),
    ],
)
def test_what_is_read_as_the_answer(answer, text, found):
    assert read(text, answer) == found


def problems(task="chain_sum", n=1, **options):
    return reasoning_gym.load(task, options, size=n)


def test_the_tasks_own_scorer_decides(reward):
    (problem,) = problems()
    right = problem.answer
    texts = [
        f"it is {right}.0",
        f"+{right}",
        f"it is {right}1",
        "",
        f"<answer>{right}</answer>",
        f"<answer>so {right}</answer>",
    ]
    scores = reward([problem] * 6, texts)
    assert scores.rewards == [1, 1, 0, 0, 1, 0]
    assert (scores.timeouts, scores.errors) == (0, 0)


def test_partial_scores_are_a_setting_and_never_correct():
    reward = ReasoningGymReward(partial=True, workers=1)
    (problem,) = problems("rectangle_count")
    wrong = str(int(problem.answer) + 1)
    scores = reward([problem] * 2, [problem.answer, wrong])
    reward.close()
    assert scores.rewards[0] == 1
    assert 0 < scores.rewards[1] < 1
    assert correct(scores, reward) == [True, False]


def test_a_pattern_reads_the_answer_and_lets_answers_be_counted():
    reward = ReasoningGymReward(pattern="A: (.*)", workers=1)
    (problem,) = problems()
    texts = [f"A: {problem.answer}", problem.answer, f"A: {problem.answer}\nA: x"]
    assert reward([problem] * 3, texts).rewards == [1, 0, 0]
    assert reward.answers(texts) == [problem.answer, None, "x"]
    reward.close()
    assert not hasattr(ReasoningGymReward(), "answers")
    with pytest.raises(UserError, match="has 0 groups"):
        ReasoningGymReward(pattern="A:")


def test_errors_and_time_outs_are_counted_apart(monkeypatch):
    monkeypatch.setattr(puzzles, "score", hostile.score)
    reward = ReasoningGymReward(timeout_s=2, workers=1)
    scores = reward(problems(n=4), ["<answer>1</answer>", "<answer>slow</answer>", "<answer>raise</answer>", "1"])
    reward.close()
    assert scores.rewards == [1, 0, 0, 1]
    assert (scores.timeouts, scores.errors) == (1, 1)


def test_problems_that_no_answer_can_solve_are_found(reward):
    (good,) = problems()
    foreign = Problem("1", "1+1", "2")
    broken = Problem("2", good.prompt, "no number", extra=good.extra)
    assert reward.hopeless([foreign, good, broken]) == [
        "that are not of reasoning-gym",
        None,
        None,  # its answer is what the scorer wants, character by character
    ]
    with pytest.raises(UserError, match="in 1 of 1 problems no completion can be correct: 1 that are not of reasoning-gym"):
        check_problems(reward, [foreign], "data.train")
