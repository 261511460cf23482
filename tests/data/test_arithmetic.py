import re
import zlib

import pytest

from dash_exp.core.errors import UserError
from dash_exp.data import arithmetic


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
