import json
import re
import zlib

import pytest

from dash_exp import data
from dash_exp.errors import UserError

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
    for problem in data.arithmetic("test", "symbols", 300):
        assert problem.answer == str(value(problem.prompt.rstrip("=")))
        assert problem.solution.endswith(f" A:{problem.answer}")
        for step in problem.solution.split()[:-1]:
            left, right = step.split("=")
            assert value(left) == int(right)


def test_arithmetic_words_say_the_same_as_symbols():
    for problem in data.arithmetic("test", "words", 100):
        chain = problem.prompt.removesuffix(" is").replace("plus", "+").replace("minus", "-").replace("times", "*")
        assert problem.answer == str(value(chain))


def test_arithmetic_is_the_same_every_time_and_differs_by_split():
    assert data.arithmetic("train", "symbols", 50) == data.arithmetic("train", "symbols", 50)
    assert data.arithmetic("train", "symbols", 50) != data.arithmetic("test", "symbols", 50)


def test_arithmetic_bare_answers_and_errors():
    problems = data.arithmetic("train", "symbols", 4000, direct=[1, 0.5, 0, 0], careless=0.5, error_rate=0.5)
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
    assert data.merge_steps(trace, [False, False, False]) == trace
    assert data.merge_steps(trace, [False, True, False]) == "3+4=7 7*2-5=9 A:9"
    assert data.merge_steps(trace, [True, True, False]) == "3+4*2-5=9 A:9"
    assert data.merge_steps(trace, [True, False, True]) == "3+4*2=14 14-5=9 A:9"  # the last step stays
    assert data.merge_steps("A:9", [True, True, True]) == "A:9"


def test_arithmetic_solutions_that_skip_steps_are_right_and_of_the_same_problems():
    spelled_out = data.arithmetic("train", "symbols", 2000)
    skipping = data.arithmetic("train", "symbols", 2000, skip=0.5)
    assert [(p.id, p.prompt, p.answer) for p in skipping] == [(p.id, p.prompt, p.answer) for p in spelled_out]
    for problem in skipping:
        *steps, last = problem.solution.split()
        assert last == f"A:{problem.answer}"
        assert all(value(step.split("=")[0]) == int(step.split("=")[1]) for step in steps)
    # of the steps that have a next one, half are left out: some 5,000 of them, so 5 standard errors are 0.035
    could = sum(len(p.solution.split()) - 2 for p in spelled_out)
    left_out = could - sum(len(p.solution.split()) - 2 for p in skipping)
    assert abs(left_out / could - 0.5) < 0.035
    assert data.arithmetic("train", "symbols", 50, skip=1)[0].solution.count("=") == 1


def test_the_data_of_the_shipped_base_weights_has_not_changed():
    shares = {"symbols": 0.75, "words": 0.25}
    problems = data.arithmetic("train", shares, 600, [3, 6], [0.55, 0.55, 0.1, 0.1], 0.7)
    rows = [(p.id, p.prompt, p.answer, p.solution) for p in problems]
    assert zlib.crc32(repr(rows).encode()) == 1955750434  # of commit c66ea79, which made them


def test_arithmetic_refuses_what_it_cannot_make():
    with pytest.raises(UserError, match=r"data\.form: is 'roman'"):
        data.arithmetic("test", "roman", 5)
    with pytest.raises(UserError, match=r"data\.skip=1\.5: is not a share"):
        data.arithmetic("test", "symbols", 5, skip=1.5)
    with pytest.raises(UserError, match=r"data\.direct: has 2 shares"):
        data.arithmetic("test", "symbols", 5, direct=[0.5, 0.5])


def test_no_test_problem_is_trained_on():
    test = data.arithmetic("test", "symbols", 500)
    train = data.without(data.arithmetic("train", "symbols", 5000), test)
    assert 4000 < len(train) < 5000  # some did coincide: three numbers leave few chains
    assert not {p.prompt for p in train} & {p.prompt for p in test}


def test_gsm8k_rows(tmp_path):
    (problem,) = data.gsm8k(write(tmp_path / "d", [ROW]), "train")
    assert (problem.prompt, problem.answer) == ("Two and two?", "1004")
    assert problem.solution.endswith("#### 1,004")


def test_math_rows_take_the_answer_field_or_the_last_box(tmp_path):
    rows = [
        {"problem": "a", "solution": "first \\boxed{1}, then \\boxed{\\frac{1}{2}}."},
        {"problem": "b", "solution": "\\boxed{3}", "answer": "4", "unique_id": "u/1"},
    ]
    first, second = data.math(write(tmp_path / "d", rows), "train")
    assert (first.answer, second.answer, second.id) == ("\\frac{1}{2}", "4", "u/1")


def test_jsonl_with_fields_of_ones_own(tmp_path):
    path = write(tmp_path / "d", [{"q": "1+1", "gold": 2, "why": "count"}])
    (problem,) = data.jsonl(path, "train", prompt="q", answer="gold", solution="why")
    assert (problem.prompt, problem.answer, problem.solution) == ("1+1", "2", "count")


def test_problem_ids_do_not_depend_on_where_the_folder_is(tmp_path):
    here, there = write(tmp_path / "here", [ROW]), write(tmp_path / "there", [ROW])
    assert data.gsm8k(here, "train") == data.gsm8k(there, "train")


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
        data.gsm8k(write(tmp_path / "d", rows), "train")


def test_ids_must_be_unique(tmp_path):
    path = write(tmp_path / "d", [{"id": "x", "p": "1", "a": "1"}, {"id": "x", "p": "2", "a": "2"}])
    with pytest.raises(UserError, match=r"line 2: has the id 'x' of .*line 1"):
        data.jsonl(path, "train", prompt="p", answer="a")


def test_missing_files_and_wrong_encodings(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*train\.jsonl"):
        data.gsm8k(str(tmp_path / "none"), "train")
    (tmp_path / "test.jsonl").write_bytes(b'{"question": "\xff", "answer": "#### 1"}')
    with pytest.raises(UserError, match="is not UTF-8"):
        data.gsm8k(str(tmp_path), "test")


def test_a_hub_that_cannot_be_reached_is_a_message(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="could not be loaded from the hub"):
        data.gsm8k("nobody/nothing-of-that-name", "train")


def test_last_boxed():
    assert data.last_boxed("\\boxed{a} and \\boxed{\\frac{1}{2}}.") == "\\frac{1}{2}"
    assert data.last_boxed("none") is None
    assert data.last_boxed("\\boxed{never closed") is None
