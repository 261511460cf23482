import threading
import time

import hostile
import pytest
import torch
from conftest import composed, save_scorer
from hydra.utils import instantiate
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.rewards import sandbox
from dash_exp.rewards.base import Scores, check_problems, correct
from dash_exp.rewards.code import CodeReward, program_of
from dash_exp.rewards.exact import ExactReward
from dash_exp.rewards.format import FormatReward
from dash_exp.rewards.math import MathReward
from dash_exp.rewards.model import ModelReward
from dash_exp.rewards.sums import SumReward


def problem(answer):
    return Problem("p", "?", answer)


@pytest.fixture(scope="module")
def math_reward():
    reward = MathReward(timeout_s=2.0, workers=2)
    yield reward
    reward.close()


@pytest.mark.parametrize(
    ("text", "right"),
    [("3+4=7 A:7", 1), ("A:7", 1), ("A:8 A:7", 1), ("A:7 A:8", 0), ("A:77", 0), ("7", 0), ("", 0), ("A:", 0)],
)
def test_exact_takes_the_last_match(text, right):
    assert ExactReward(r"A:\s*(\S+)")([problem("7")], [text]).rewards == [right]


def test_exact_without_a_pattern_compares_everything():
    assert ExactReward(None)([problem("yes")] * 3, [" yes\n", "yes!", "no"]).rewards == [1, 0, 0]


@pytest.mark.parametrize("pattern", ["A:(", "A:.*", "(a)(b)"])
def test_exact_refuses_a_bad_pattern(pattern):
    with pytest.raises(UserError, match=r"reward\.pattern"):
        ExactReward(pattern)


MATH = [
    ("42", "The answer is 42.", 1),
    ("42", "so \\boxed{42}", 1),
    ("42", "I think it is 41", 0),
    ("1/2", "$\\frac{1}{2}$", 1),
    ("\\frac{1}{2}", "it is 0.5", 1),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\boxed{(3, \\pi/2)}", 1),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\boxed{(3, \\pi)}", 0),
    ("1234", "#### 1,234", 1),
    ("7", "no number at all", 0),
    ("7", "", 0),
]


def test_math_equivalence(math_reward):
    scores = math_reward([problem(a) for a, _, _ in MATH], [t for _, t, _ in MATH])
    assert scores.rewards == [r for _, _, r in MATH]
    assert (scores.timeouts, scores.errors) == (0, 0)


def test_a_time_out_is_counted_apart_and_the_others_are_graded(monkeypatch):
    monkeypatch.setattr("dash_exp.rewards.base.math_equal", hostile.grade)
    reward = MathReward(timeout_s=0.5, workers=1)
    start = time.perf_counter()
    scores = reward([problem("7")] * 4, ["7", "slow", "8", "7"])
    reward.close()
    assert scores.rewards == [1, 0, 0, 1]
    assert (scores.timeouts, scores.errors) == (1, 0)
    assert time.perf_counter() - start < 60


def test_grading_works_in_any_thread(math_reward):
    found = []
    thread = threading.Thread(target=lambda: found.append(math_reward([problem("7")], ["it is 7"])))
    thread.start()
    thread.join(60)
    assert found[0].rewards == [1]
    assert found[0].timeouts == 0


def test_a_gold_answer_that_cannot_be_read_is_an_error_and_no_wrong_answer(math_reward):
    scores = math_reward([problem("")], ["it is 7"])
    assert (scores.rewards, scores.errors) == ([0], 1)


DOUBLE = Problem("d", "Double.", "", tests=("assert double(2) == 4", "assert double('a') == 'aa'"))


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1", "x = 1"),
        ("So:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```python\nx = 1\n```\n```python\nx = 2\n```\n```\nx = 3\n```", "x = 2\n"),
        ("```\nx = 1\n```\n```text\nx = 2\n```", "x = 2\n"),
        ("```py\nx = 1\n```\n```\nprints 1\n```", "x = 1\n"),
        ("```python\nx = 1\ny = 2", "x = 1\ny = 2"),
        ("  ```Python title\n  x = 1\n  ```", "  x = 1\n"),
        ("`x`", "`x`"),
        ("", ""),
    ],
)
def test_the_program_in_a_completion(text, program):
    assert program_of(text) == program


def test_code_is_graded_in_order_and_failures_are_counted_apart(bubblewrap):
    reward = CodeReward(timeout_s=1, workers=3)
    texts = [
        "def double(x):\n    return x + x",
        "I think\n```python\ndef double(x):\n    return 2 * x\n```\nis right.",
        "def double(x):\n    return x ** 2",
        "def double(x):\n    while True: pass",
        "no program at all",
        "import sys; sys.exit(0)",
        "def double(x):\n    return 2 * x",
    ]
    broken = Problem("b", "?", "", tests=())
    scores = reward([DOUBLE] * 6 + [broken], texts)
    assert scores.rewards == [1, 1, 0, 0, 0, 0, 0]
    assert (scores.timeouts, scores.errors) == (1, 1)


def test_problems_that_a_reward_cannot_grade_are_refused_before_anything_runs():
    code, exact = CodeReward(isolation="process"), ExactReward(None)
    check_problems(code, [DOUBLE])
    check_problems(exact, [problem("7")])
    check_problems(FormatReward(".*"), [DOUBLE, problem("7")])
    with pytest.raises(UserError, match=r"^problem p: has no tests for its program"):
        check_problems(SumReward({"code": code}, {"code": 1.0}, "code"), [DOUBLE, problem("7")])
    for reads in (exact, MathReward()):
        with pytest.raises(UserError, match=r"^problem d: asks for a program, and the reward reads an answer"):
            check_problems(reads, [problem("7"), DOUBLE])
    with pytest.raises(UserError, match="rewards of programs and of answers"):
        SumReward({"code": code, "exact": exact}, {"code": 1.0, "exact": 1.0}, "code")


def test_a_sum_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"^reward\.weights: are all 0"):
        SumReward({"exact": ExactReward(None)}, {"exact": 0.0}, "exact")


def test_a_part_of_a_sum_must_not_hide_the_sum():
    with pytest.raises(UserError, match=r"^reward\.parts\.mean"):
        SumReward({"mean": ExactReward(None)}, {"mean": 1.0}, "mean")


def test_code_without_bubblewrap_is_refused_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.bubblewrap.cache_clear()
    with pytest.raises(UserError, match="apt install bubblewrap"):
        CodeReward()
    assert CodeReward(isolation="process")([DOUBLE], ["def double(x): return x * 2"]).rewards == [1]
    sandbox.bubblewrap.cache_clear()


def test_exact_answers():
    assert ExactReward(r"A:\s*(\S+)").answers(["A:7 A: 8", "no"]) == ["8", None]
    assert ExactReward(None).answers([" yes\n"]) == ["yes"]


SAME_ANSWERS = [
    ["it is 0.5", "\\boxed{\\frac{1}{2}}", "1/2", "so $x = 0.5$", "50%"],
    ["#### 1,234", "\\boxed{1234}", "1234.0"],
    ["$\\sqrt{8}$", "$2\\sqrt{2}$"],
    ["$\\{1, 2\\}$", "$\\{2, 1\\}$"],
    ["$(1, \\frac{1}{2})$", "\\boxed{(1, 0.5)}"],
    ["$(x+1)^2$", "$x^2+2x+1$"],
    ["12345678901234567890"],
    ["12345678901234567891"],
    ["$\\infty$"],
    ["\\boxed{\\text{Evelyn}}"],
    ["$(1, 2)$"],
    ["$(2, 1)$"],
]


def test_math_answers_are_spelled_alike_where_they_are_equal(math_reward):
    texts = [t for same in SAME_ANSWERS for t in same]
    found = dict(zip(texts, math_reward.answers(texts), strict=True))
    spellings = [{found[t] for t in same} for same in SAME_ANSWERS]
    assert all(len(s) == 1 for s in spellings), spellings
    assert len(set.union(*spellings)) == len(SAME_ANSWERS)
    assert math_reward.answers(["no number at all", ""]) == [None, None]


def test_an_answer_that_takes_too_long_to_read_has_no_vote(monkeypatch):
    monkeypatch.setattr("dash_exp.rewards.base.math_answer", hostile.answer)
    reward = MathReward(timeout_s=0.5, workers=1)
    assert reward.answers(["7", "slow", "8"]) == ["7", None, "8"]
    reward.close()


TAGGED = [("<think>it is 7 </think> <answer>42</answer>", 1), ("42", 0), ("<answer>42</answer> <answer>43</answer>", 0)]


def test_math_within_tags():
    reward = MathReward(workers=1, pattern=r"(?s)<answer>(.*?)</answer>")
    texts = [t for t, _ in TAGGED]
    assert reward([problem("42")] * 3, texts).rewards == [r for _, r in TAGGED]
    assert reward.answers(texts) == ["42", None, "43"]
    reward.close()


FORMAT = [
    ("<think>a</think><answer>b</answer>", 1),
    (" <think>two\nlines</think>\n\n<answer></answer>\n", 1),
    ("<think>a</think> so <answer>b</answer>", 0),
    ("<answer>b</answer><think>a</think>", 0),
    ("<think>a</think><think>a</think><answer>b</answer>", 0),
    ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
    ("<think>a</think><answer>b</answer> or so", 0),
    ("<think>a</think><answer>b", 0),
    ("", 0),
]


def test_format():
    reward = instantiate(composed("reward=format").reward)
    assert reward([problem("b")] * len(FORMAT), [t for t, _ in FORMAT]).rewards == [r for _, r in FORMAT]


def test_format_with_a_bad_or_a_slow_pattern():
    for pattern in ("a(", None):
        with pytest.raises(UserError, match=r"reward\.pattern"):
            FormatReward(pattern)
    scores = FormatReward("(a|a)*b", timeout_s=0.05)([problem("")] * 2, ["a" * 40 + "cb", "aab"])
    assert (scores.rewards, scores.timeouts) == ([0, 1], 1)


def by_hand(folder, ids):
    """The logit of one unpadded row, by the model itself."""
    scorer = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return float(scorer(input_ids=torch.tensor([ids])).logits[0, 0])


def test_model_reward_is_the_logit_whatever_the_batches(tmp_path, tokenizer):
    folder = save_scorer(tmp_path)
    texts = ["7", "a longer one: 7", "", "8 and some more"]
    logits = [by_hand(folder, tokenizer("?" + t).input_ids) for t in texts]
    assert len({round(logit, 3) for logit in logits}) == 4
    for max_tokens in (1, 20, 1000):
        reward = ModelReward(str(folder), squash=False, accept_above=sorted(logits)[1], max_tokens=max_tokens, device="cpu")
        scores = reward([problem("7")] * 4, texts)
        assert scores.rewards == pytest.approx(logits, abs=1e-4)
    squashed = ModelReward(str(folder), device="cpu")([problem("7")] * 4, texts)
    assert squashed.rewards == pytest.approx(torch.tensor(logits).sigmoid().tolist(), abs=1e-4)
    assert correct(squashed, reward) == [logit > 0 for logit in logits]


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def test_model_reward_in_a_chat_template(tmp_path, tokenizer):
    folder = save_scorer(tmp_path, CHAT)
    for chat, text in ((True, "<user>?<assistant>7"), (False, "?7")):
        scores = ModelReward(str(folder), chat=chat, squash=False, device="cpu")([problem("7")], ["7"])
        assert scores.rewards == pytest.approx([by_hand(folder, tokenizer(text).input_ids)], abs=1e-4)


def test_what_a_model_cannot_read_is_an_error(tmp_path):
    reward = ModelReward(str(save_scorer(tmp_path, max_position_embeddings=16)), accept_above=-1.0, device="cpu")
    scores = reward([problem("7")] * 2, ["x" * 16, "x" * 15])  # the prompt takes one token
    assert (scores.rewards[0], scores.errors) == (0, 1)
    assert scores.rewards[1] > 0
    assert correct(scores, reward) == [False, True]


def test_folders_that_are_no_reward_model(tmp_path, policy: PreTrainedModel, tokenizer):
    with pytest.raises(UserError, match=r"reward\.path=.*gives 2 logits"):
        ModelReward(str(save_scorer(tmp_path / "two", num_labels=2)))
    policy.config.num_labels = 1
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match=r"has no weights for score\.weight"):
        ModelReward(str(tmp_path / "policy"))
    with pytest.raises(UserError, match=r"^reward\.path="):
        ModelReward(str(tmp_path / "nowhere"))
    for setting in ({"device": "abacus"}, {"dtype": "int8"}):
        with pytest.raises(UserError, match=rf"reward\.{next(iter(setting))}="):
            ModelReward(str(tmp_path / "two"), **setting)


@pytest.mark.gpu
def test_model_reward_on_a_gpu(tmp_path):
    folder = str(save_scorer(tmp_path))
    on = {d: ModelReward(folder, device=d)([problem("7")] * 3, ["7", "8", "nine"]).rewards for d in ("cpu", "cuda", "auto")}
    assert on["cuda"] == on["auto"] == pytest.approx(on["cpu"], abs=1e-3)


class Fixed:
    """A reward that gives what it is told, and remembers that it was closed."""

    def __init__(self, rewards, **scores):
        self.scores, self.closed = Scores(rewards, **scores), False

    def __call__(self, problems, texts):
        return self.scores

    def close(self):
        self.closed = True


def test_a_sum_of_rewards():
    right, form = Fixed([1.0, 0.0, 1.0], timeouts=1), Fixed([1.0, 1.0, 0.0], timeouts=2, errors=3)
    reward = SumReward({"right": right, "form": form}, {"right": 1, "form": 0.1}, correct="right")
    scores = reward([problem("")] * 3, [""] * 3)
    assert scores.rewards == pytest.approx([1.1, 0.1, 1.0])
    assert scores.components == {"right": [1, 0, 1], "form": [1, 1, 0]}
    assert (scores.timeouts, scores.errors) == (3, 3)
    assert correct(scores, reward) == [True, False, True]
    reward.close()
    assert right.closed
    assert form.closed


def test_sums_may_be_nested_and_take_the_answers_of_what_decides():
    exact = ExactReward("A:(.)")
    inner = SumReward({"exact": exact, "one": Fixed([1.0, 1.0])}, {"exact": 2, "one": 1}, correct="exact")
    outer = SumReward({"inner": inner, "less": Fixed([1.0, 0.5])}, {"inner": 1, "less": -1}, correct="inner")
    scores = outer([problem("7")] * 2, ["A:7", "A:8"])
    assert scores.rewards == [2, 0.5]
    assert scores.components["inner/exact"] == [1, 0]
    assert correct(scores, outer) == [True, False]
    assert outer.answers(["A:7", "8"]) == ["7", None]
    assert not hasattr(SumReward({"one": Fixed([1.0])}, {"one": 1}, correct="one"), "answers")


@pytest.mark.parametrize(
    ("weights", "decides", "says"),
    [
        ({"a": 1}, "a", "has no weight for b"),
        ({"a": 1, "b": 1, "c": 1}, "a", r"reward\.weights\.c: there is no part"),
        ({"a": 1, "b": float("nan")}, "a", r"reward\.weights\.b=nan: is not a finite number"),
        ({"a": 1, "b": None}, "a", r"reward\.weights\.b=None"),
        ({"a": 1, "b": True}, "a", r"reward\.weights\.b=True"),
        ({"a": 1, "b": 1}, "c", r"reward\.correct=c: is no part"),
    ],
)
def test_sums_that_cannot_be(weights, decides, says):
    with pytest.raises(UserError, match=says):
        SumReward({"a": Fixed([]), "b": Fixed([])}, weights, decides)


def test_math_and_format_from_the_configuration():
    reward = instantiate(composed("reward=math_format", "reward.weights.format=0.5", "reward.parts.math.workers=1").reward)
    texts = ["<think>6*7</think> <answer>42</answer>", "<answer>42</answer>", "<think>1</think> <answer>1</answer>", "42"]
    scores = reward([problem("42")] * 4, texts)
    reward.close()
    assert scores.rewards == [1.5, 1, 0.5, 0]
    assert correct(scores, reward) == [True, True, False, False]
