import json
import re
import zlib

import pytest
from mbpp_like import TASKS, row

from dash_exp.algorithms import advantages, filters
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import Clock
from dash_exp.data import arithmetic, gsm8k, jsonl, math, mbpp, mbpp_plus, order
from dash_exp.rewards.code import CodeReward
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.refresh import Refresh
from dash_exp.sampling.traces import TraceSampler
from dash_exp.training.rollout import RolloutDataModule

ROW = {"question": "Two and two?", "answer": "2+2 is <<2+2=4>>4.\n#### 1,004"}


def write(folder, rows, split="train"):
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


def value(chain):
    """Left to right, modulo 100: an evaluation of its own."""
    result, *rest = re.findall(r"\d+|[-+*]", chain)
    result = int(result)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        result = {"+": result + int(number), "-": result - int(number), "*": result * int(number)}[sign] % 100
    return result


def test_arithmetic_answers_are_right():
    for problem in arithmetic.generate("test", "symbols", 300):
        assert problem.answer == str(value(problem.prompt.rstrip("=")))
        assert problem.solution.endswith(f" A:{problem.answer}")
        for step in problem.solution.split()[:-1]:
            left, right = step.split("=")
            assert value(left) == int(right)


def test_arithmetic_words_say_the_same_as_symbols():
    for problem in arithmetic.generate("test", "words", 100):
        chain = problem.prompt.removesuffix(" is").replace("plus", "+").replace("minus", "-").replace("times", "*")
        assert problem.answer == str(value(chain))


def test_arithmetic_is_the_same_every_time_and_differs_by_split():
    assert arithmetic.generate("train", "symbols", 50) == arithmetic.generate("train", "symbols", 50)
    assert arithmetic.generate("train", "symbols", 50) != arithmetic.generate("test", "symbols", 50)


def test_arithmetic_bare_answers_and_errors():
    problems = arithmetic.generate("train", "symbols", 4000, direct=[1, 0.5, 0, 0], careless=0.5, error_rate=0.5)
    by_length = {n: [p for p in problems if len(re.findall(r"\d", p.prompt)) == n] for n in (3, 4, 5, 6)}
    bare = {n: sum(p.solution.startswith("A:") for p in ps) / len(ps) for n, ps in by_length.items()}
    assert bare[3] == 1
    assert 0.4 < bare[4] < 0.6
    assert bare[5] == bare[6] == 0
    wrong = [[value(s.split("=")[0]) != int(s.split("=")[1]) for s in p.solution.split()[:-1]] for p in by_length[6]]
    assert 0.45 < sum(any(steps) for steps in wrong) / len(wrong) < 0.55  # half are careless; 1 in 32 of those has luck
    assert 0.2 < sum(map(sum, wrong)) / sum(map(len, wrong)) < 0.3


def test_merge_steps():
    trace = "3+4=7 7*2=14 14-5=9 A:9"
    assert arithmetic.merge_steps(trace, [False, False, False]) == trace
    assert arithmetic.merge_steps(trace, [False, True, False]) == "3+4=7 7*2-5=9 A:9"
    assert arithmetic.merge_steps(trace, [True, True, False]) == "3+4*2-5=9 A:9"
    assert arithmetic.merge_steps(trace, [True, False, True]) == "3+4*2=14 14-5=9 A:9"  # the last step stays
    assert arithmetic.merge_steps("A:9", [True, True, True]) == "A:9"


def test_arithmetic_solutions_that_skip_steps_are_right_and_of_the_same_problems():
    spelled_out = arithmetic.generate("train", "symbols", 2000)
    skipping = arithmetic.generate("train", "symbols", 2000, skip=0.5)
    assert [(p.id, p.prompt, p.answer) for p in skipping] == [(p.id, p.prompt, p.answer) for p in spelled_out]
    for problem in skipping:
        *steps, last = problem.solution.split()
        assert last == f"A:{problem.answer}"
        assert all(value(step.split("=")[0]) == int(step.split("=")[1]) for step in steps)
    # of the steps that have a next one, half are left out: some 5,000 of them, so 5 standard errors are 0.035
    could = sum(len(p.solution.split()) - 2 for p in spelled_out)
    left_out = could - sum(len(p.solution.split()) - 2 for p in skipping)
    assert abs(left_out / could - 0.5) < 0.035
    assert arithmetic.generate("train", "symbols", 50, skip=1)[0].solution.count("=") == 1


def test_the_data_of_the_shipped_base_weights_has_not_changed():
    shares = {"symbols": 0.75, "words": 0.25}
    problems = arithmetic.generate("train", shares, 600, [3, 6], [0.55, 0.55, 0.1, 0.1], 0.7)
    rows = [(p.id, p.prompt, p.answer, p.solution) for p in problems]
    assert zlib.crc32(repr(rows).encode()) == 1955750434  # of commit c66ea79, which made them


def test_arithmetic_refuses_what_it_cannot_make():
    with pytest.raises(UserError, match=r"data\.form: is 'roman'"):
        arithmetic.generate("test", "roman", 5)
    with pytest.raises(UserError, match=r"data\.skip=1\.5: is not a share"):
        arithmetic.generate("test", "symbols", 5, skip=1.5)
    with pytest.raises(UserError, match=r"data\.direct: has 2 shares"):
        arithmetic.generate("test", "symbols", 5, direct=[0.5, 0.5])


def test_no_test_problem_is_trained_on():
    test = arithmetic.generate("test", "symbols", 500)
    train = order.without(arithmetic.generate("train", "symbols", 5000), test)
    assert 4000 < len(train) < 5000  # some did coincide: three numbers leave few chains
    assert not {p.prompt for p in train} & {p.prompt for p in test}


def test_gsm8k_rows(tmp_path):
    (problem,) = gsm8k.load(write(tmp_path / "d", [ROW]), "train")
    assert (problem.prompt, problem.answer) == ("Two and two?", "1004")
    assert problem.solution.endswith("#### 1,004")


def test_math_rows_take_the_answer_field_or_the_last_box(tmp_path):
    rows = [
        {"problem": "a", "solution": "first \\boxed{1}, then \\boxed{\\frac{1}{2}}."},
        {"problem": "b", "solution": "\\boxed{3}", "answer": "4", "unique_id": "u/1"},
    ]
    first, second = math.load(write(tmp_path / "d", rows), "train")
    assert (first.answer, second.answer, second.id) == ("\\frac{1}{2}", "4", "u/1")


def test_jsonl_with_fields_of_ones_own(tmp_path):
    path = write(tmp_path / "d", [{"q": "1+1", "gold": 2, "why": "count"}])
    (problem,) = jsonl.load(path, "train", prompt="q", answer="gold", solution="why")
    assert (problem.prompt, problem.answer, problem.solution) == ("1+1", "2", "count")


def test_problem_ids_do_not_depend_on_where_the_folder_is(tmp_path):
    here, there = write(tmp_path / "here", [ROW]), write(tmp_path / "there", [ROW])
    assert gsm8k.load(here, "train") == gsm8k.load(there, "train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, {"question": "x"}], r"train\.jsonl, line 2: has no field 'answer'"),
        ([{"question": "x", "answer": "no mark"}], r"line 1, field answer: has no '#### number'"),
        ([{"question": " ", "answer": "#### 1"}], r"line 1, field question: is ' '"),
        ([{"question": None, "answer": "#### 1"}], r"line 1, field question: is None"),
        ([ROW, "{cut off"], r"line 2: is not valid JSON"),
        (["[1, 2]"], r"line 1: is not a JSON object"),
        ([""], r"train split .* is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        gsm8k.load(write(tmp_path / "d", rows), "train")


def test_ids_must_be_unique(tmp_path):
    path = write(tmp_path / "d", [{"id": "x", "p": "1", "a": "1"}, {"id": "x", "p": "2", "a": "2"}])
    with pytest.raises(UserError, match=r"line 2: has the id 'x' of .*line 1"):
        jsonl.load(path, "train", prompt="p", answer="a")


def test_missing_files_and_wrong_encodings(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*train\.jsonl"):
        gsm8k.load(str(tmp_path / "none"), "train")
    (tmp_path / "test.jsonl").write_bytes(b'{"question": "\xff", "answer": "#### 1"}')
    with pytest.raises(UserError, match="is not UTF-8"):
        gsm8k.load(str(tmp_path), "test")


def test_a_hub_that_cannot_be_reached_is_a_message(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the tries, where there is no network
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="could not be loaded from the hub"):
        gsm8k.load("nobody/nothing-of-that-name", "train")


def test_last_boxed():
    assert math.last_boxed("\\boxed{a} and \\boxed{\\frac{1}{2}}.") == "\\frac{1}{2}"
    assert math.last_boxed("none") is None
    assert math.last_boxed("\\boxed{never closed") is None


# --- programs ----------------------------------------------------------------------------------------------------------


def test_mbpp_is_split_by_task_id(tmp_path):
    ids = [1, 10, 11, 510, 511, 600, 601, 974]
    (tmp_path / "mbpp.jsonl").write_text("\n".join(json.dumps(row(i, n)) for i, n in enumerate(ids)))
    found = {s: [p.id for p in mbpp.load(str(tmp_path), s)] for s in ("prompt", "test", "validation", "train")}
    assert found == {
        "prompt": ["mbpp/1", "mbpp/10"],
        "test": ["mbpp/11", "mbpp/510"],
        "validation": ["mbpp/511", "mbpp/600"],
        "train": ["mbpp/601", "mbpp/974"],
    }


def test_mbpp_rows(tmp_path):
    rows = [
        row(0, 700) | {"test_setup_code": "one = 1\r\n", "challenge_test_list": ["assert add(0, 0) == 0"]},
        {
            "prompt": "Sanitized.",
            "code": "def f(): pass",
            "task_id": 2,
            "test_list": ["assert f()"],
            "test_imports": ["import math"],
        },
        row(1, 702) | {"test_list": ["assert largest([1]) == 1", f"assert largest({[1] * 200}) == 1"]},
    ]
    first, second, third = mbpp.load(write(tmp_path / "d", rows), "train")
    assert first.prompt == (
        "Write a function to add two numbers.\nThe program must pass these tests:\n"
        "assert add(1, 2) == 3\nassert add(-1, 1) == 0\nassert add('a', 'b') == 'ab'\n"
    )
    assert first.tests == (
        "one = 1\n",
        "assert add(1, 2) == 3",
        "assert add(-1, 1) == 0",
        "assert add('a', 'b') == 'ab'",
        "assert add(0, 0) == 0",
    )
    assert first.solution == first.answer == "def add(a, b):\n    return a + b"
    assert second.prompt == "Sanitized.\nThe program must pass these tests:\nassert f()\n"
    assert second.tests == ("import math", "assert f()")
    assert third.prompt.endswith("tests:\nassert largest([1]) == 1\n")
    assert len(third.tests) == 2


PLUS = {
    "task_id": 2,
    "prompt": "Write a function to add.",
    "code": "def add(a, b):\n    return a + b",
    "test_imports": ["from math import inf"],
    "test_list": ["assert add(1, 2) == 3"],
    "test": """import numpy as np
from math import inf
def near(out, exp, atol):
    if atol == 0 and isinstance(exp, float):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp, f"out: {out}, exp: {exp}"
inputs = [[1, 2], [0.1, 0.2], [inf, 1], [[1], [2]]]
results = [3, 0.3, inf, [1, 2]]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    near(add(*inp), exp, 0)
""",
}


def test_mbpp_plus_is_split_as_mbpp_is_and_graded_by_its_script(bubblewrap, tmp_path):
    rows = [PLUS | {"task_id": n} for n in (2, 11, 510, "Mbpp/511", 809)]
    (tmp_path / "mbpp_plus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train, test = (mbpp_plus.load(str(tmp_path), split) for split in ("train", "test"))
    assert [p.id for p in train] == ["mbpp_plus/2", "mbpp_plus/511", "mbpp_plus/809"]
    assert [p.id for p in test] == ["mbpp_plus/11", "mbpp_plus/510"]
    assert train[0].prompt == "Write a function to add.\nThe program must pass these tests:\nassert add(1, 2) == 3\n"
    assert train[0].tests == ("from math import inf", PLUS["test"])
    wrong = "def add(a, b):\n    return a + b if a != 0.1 else 0.301"
    scores = CodeReward()(train[:2], [train[0].solution, wrong])
    assert (scores.rewards, scores.errors) == ([1, 0], 0)


def test_mbpp_plus_from_the_hub_is_split_the_same_way(monkeypatch):
    rows = [PLUS | {"task_id": n} for n in (2, 11)]
    monkeypatch.setattr(
        "datasets.load_dataset", lambda path, name, split: {("evalplus/mbppplus", None, "test"): rows}[path, name, split]
    )
    assert [p.id for p in mbpp_plus.load("evalplus/mbppplus", "train")] == ["mbpp_plus/2"]
    assert [p.id for p in mbpp_plus.load("evalplus/mbppplus", "test")] == ["mbpp_plus/11"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_list": []}, r"line 1, field test_list: is missing or empty"),
        ({"test_list": "assert f()"}, r"line 1, field test_list: is 'assert f\(\)'"),
        ({"task_id": "first"}, r"line 1, field task_id: is 'first'"),
        ({"code": ""}, r"line 1, field code: is ''"),
        ({"text": None}, r"line 1, field text: is None"),
    ],
)
def test_bad_mbpp_rows_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        mbpp.load(write(tmp_path / "d", [row(0, 1) | change]), "train")


def test_reference_programs_get_1_from_problem_to_rollout(bubblewrap, policy, tokenizer, tmp_path):
    """A sampler that hands out the reference programs; and each of them gets 0 on the tests of the next task."""
    (tmp_path / "mbpp.jsonl").write_text("\n".join(json.dumps(row(i, 601 + i)) for i in range(len(TASKS))))
    problems = mbpp.load(str(tmp_path), "train")
    module = RolloutDataModule(
        train=problems,
        tests={"in_dist": problems[:3]},
        tokenizer=tokenizer,
        refresh=Refresh(policy, TraceSampler(tokenizer)),
        reward=CodeReward(timeout_s=20),
        advantage=advantages.group_centered,
        keep=filters.KeepAll(),
        clock=Clock(),
        prompts=len(TASKS),
        group_size=2,
        sample_prompts=None,
        sampling=Sampling(512),
        context=2048,
        max_prompt_tokens=1024,
        eval_prompts=8,
        seed=0,
    )
    rollouts = module.rollouts(module.problems_of_step(0), 0)
    assert rollouts.rewards_PG.tolist() == [[1, 1]] * len(TASKS)
    assert (rollouts.grader_timeouts, rollouts.grader_errors) == (0, 0)
    assert module.evaluate(module.test_prompts["in_dist"]).greedy.correct == [True] * 3
    shifted = [p.solution for p in [*problems[1:], problems[0]]]
    assert CodeReward()(problems, shifted).rewards == [0] * len(TASKS)


def test_mbpp_with_the_code_reward_runs_as_typed(bubblewrap, train, tmp_path):
    (tmp_path / "mbpp.jsonl").write_text(
        "\n".join(json.dumps(row(i, n)) for i, n in enumerate((*range(11, 15), *range(601, 609))))
    )
    small = ["steps=1", "batch.prompts=4", "batch.group_size=2", "rollout.max_response_tokens=16", "logger=csv", "name=m"]
    done = train("data=mbpp", f"data.path={tmp_path}", "reward=code", *small)
    assert done.returncode == 0, done.stderr
    (result,) = (json.loads(file.read_text()) for file in tmp_path.glob("outputs/m/*/result.json"))
    assert result["status"] == "done"
    assert result["accuracy/in_dist/final"] == 0  # the tiny model writes no Python
    assert (result["score/errors"], result["eval/errors"]) == (0, 0)


def test_without_bubblewrap_a_run_ends_with_a_message(train, tmp_path):
    (tmp_path / "mbpp.jsonl").write_text("\n".join(json.dumps(row(i, n)) for i, n in enumerate((11, 601))))
    done = train("data=mbpp", f"data.path={tmp_path}", env={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "apt install bubblewrap" in done.stderr
    assert "Traceback" not in done.stderr
