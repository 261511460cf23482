import re

import pytest

from dash_exp.core.errors import UserError
from dash_exp.data import programs
from dash_exp.data.program_steps import KINDS
from dash_exp.rewards.code import CodeReward

ONE = {"min": 1, "max": 1}
SETS = {
    "the default": {},
    "one step of any kind": {"kinds": KINDS, "steps": ONE},
    "conditions": {"kinds": ["conditions"]},
    "three steps": {"steps": {"min": 3, "max": 3}, "seed": 2},
}


def name_of(problem):
    return re.match(r"def (\w+)\(", problem.solution)[1]


def body(problem):
    """The program without the name of its function."""
    return problem.solution.partition("(")[2]


def passes(program, problem):
    """Whether a program of ours passes the tests, here and not in a sandbox."""
    namespace = {}
    exec(program, namespace)
    try:
        exec("\n".join(problem.tests), namespace)
    except (AssertionError, TypeError, IndexError, ValueError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("options", SETS.values(), ids=SETS)
def test_solutions_pass_and_constants_fail_in_the_sandbox(bubblewrap, options):
    problems = programs.generate("train", 12, **options)
    answers = [p.tests[-1].partition(" == ")[2] for p in problems]
    constants = [f"def {name_of(p)}(*_):\n    return {answer}" for p, answer in zip(problems, answers, strict=True)]
    scores = CodeReward(timeout_s=20)([*problems, *problems], [*(p.solution for p in problems), *constants])
    assert scores.rewards == [1] * 12 + [0] * 12
    assert (scores.timeouts, scores.errors) == (0, 0)


@pytest.mark.parametrize("options", SETS.values(), ids=SETS)
def test_a_program_of_another_problem_fails(options):
    """Of those with the same arguments: other programs may do the same, as sorting before taking the largest number."""
    problems = programs.generate("train", 150, **options)
    tried = passed = 0
    for i, problem in enumerate(problems):
        assert passes(problem.solution, problem)
        alike = [p for p in problems[i + 1 :] + problems[:i] if body(p) != body(problem)]
        same = [p for p in alike if body(p).partition(")")[0] == body(problem).partition(")")[0]]
        for other in same[:10]:
            tried += 1
            passed += passes(f"def {name_of(problem)}({body(other)}", problem)
    assert tried >= 1000
    assert passed <= 0.05 * tried


@pytest.mark.parametrize(
    ("kinds", "right", "wrong"),
    [
        (["conditions"], " > ", " >= "),
        (["conditions"], " < ", " <= "),
        (["numbers"], " - ", " + "),
        (["numbers"], " // ", " / "),
        (["lists"], "sorted(xs)", "sorted(set(xs))"),
        (["strings"], ".upper()", ".capitalize()"),
    ],
)
def test_a_program_with_a_small_mistake_fails(kinds, right, wrong):
    problems = [p for split, n in (("train", 200), ("test", 30)) for p in programs.generate(split, n, kinds, ONE)]
    mistaken = [p for p in problems if right in p.solution]
    assert mistaken
    assert not any(passes(p.solution.replace(right, wrong), p) for p in mistaken)


@pytest.mark.parametrize("options", SETS.values(), ids=SETS)
def test_each_problem_has_its_id_its_words_and_three_to_five_tests(options):
    problems = programs.generate("test", 100, **options)
    assert len({p.id for p in problems}) == len({p.prompt for p in problems}) == 100
    fewest, most = options.get("steps", {"min": 1, "max": 2}).values()
    edges = 0
    for problem in problems:
        assert 3 <= len(problem.tests) <= 5
        edges += bool(re.search(r"\((0|0, 0|\[\]|\[0\]|''|'a')\) == ", problem.tests[0]))
        assert len({test.partition(" == ")[2] for test in problem.tests}) > 1
        assert re.match(r"def (.+):", problem.solution)[1] in problem.prompt
        assert not re.search(r"[{}]|None", problem.prompt)
        assert fewest <= problem.solution.count("\n") <= most
        assert problem.answer == problem.solution
    assert edges > 80  # the largest number of none is an error


def test_the_same_every_time_and_no_program_in_both_splits():
    train = programs.generate("train", 300)
    assert programs.generate("train", 300) == train
    assert programs.generate("train", 100) == train[:100]
    test = programs.generate("test", 100, seed=1)
    assert test != programs.generate("test", 100)
    assert {body(p) for p in train}.isdisjoint({body(p) for p in test})
    assert len({body(p) for p in train}) > 120


def test_kinds_say_what_the_programs_are_about():
    of_text = programs.generate("train", 30, ["strings"], ONE)
    assert {body(p).partition(")")[0] for p in of_text} == {"s"}
    either = programs.generate("train", 60, ["lists", "pairs"], ONE)
    assert {body(p).partition(")")[0] for p in either} == {"xs", "x, y"}
    assert programs.generate("train", 5, ["pairs", "lists"], ONE) == either[:5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, r"data\.split=dev: is no split"),
        ({"size": 0}, r"data\.size=0: is not a whole number"),
        ({"kinds": "numbers"}, r"data\.kinds=numbers: is not a list of kinds"),
        ({"kinds": []}, r"data\.kinds=\[\]: is not a list of kinds"),
        ({"kinds": ["algebra"]}, r"data\.kinds=\['algebra'\]: is not a list of kinds"),
        ({"steps": {"min": 1}}, r"data\.steps=.*: is not a range"),
        ({"steps": {"min": 2, "max": 1}}, r"data\.steps=.*: is not a range"),
        ({"steps": {"min": 1, "max": 6}}, r"data\.steps=.*: is not a range"),
        ({"steps": 2}, r"data\.steps=2: is not a range"),
        ({"kinds": ["pairs"], "steps": ONE, "size": 5000}, r"data\.size=5000: is too much: \d+ such problems were found"),
        ({"kinds": ["pairs"], "steps": {"min": 2, "max": 2}}, r"data\.size=9: is too much: 0 such problems were found"),
    ],
)
def test_what_cannot_be_generated_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        programs.generate(**{"split": "test", "size": 9} | change)
