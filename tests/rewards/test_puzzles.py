"""The tasks of reasoning-gym: what their scorers accept, and that none of them runs an answer."""

import contextlib
from functools import cache

import pytest
from needs import why_skipped

from dash_exp.core.errors import UserError
from dash_exp.rewards import puzzles

pytestmark = pytest.mark.needs("gym")


@pytest.fixture(autouse=True)
def hash_seed(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")


USABLE = sorted(puzzles.tasks().keys() - puzzles.UNUSABLE.keys()) if not why_skipped("gym") else ["none"]


@cache
def entries(task):
    made = puzzles.dataset(task, {}, seed=5, size=4)
    return [made[i] for i in range(2)]


@pytest.mark.parametrize("task", USABLE)
def test_each_task_accepts_its_own_answer_and_runs_none(task, tmp_path):
    file = tmp_path / "left"
    hostile = [f"open({str(file)!r}, 'w')", f"[open({str(file)!r}, 'w')]", f" __import__('os').mknod({str(file)!r})"]
    for entry in entries(task):
        if entry["answer"] is not None and "Integral(" not in entry["answer"]:  # which sympy could not solve
            assert puzzles.score(task, {}, str(entry["answer"]).strip(), entry) == 1
        for text in [*hostile, "0", "nan", "", "6+6+6+6"]:
            with contextlib.suppress(AttributeError, TypeError, ValueError):  # counted as errors
                assert puzzles.score(task, {}, text, entry) < 1 or text == entry["answer"]
            assert not file.exists()


@pytest.mark.parametrize(
    ("task", "answer", "may"),
    [
        ("binary_matrix", "[[0, 1], [-2, 1]]", True),
        ("binary_matrix", "\t ['a', \"b\"]", True),
        ("n_queens", "_ Q _ _\nQ _ _ _", True),  # no Python: eval refuses it
        ("n_queens", "_", True),
        ("string_insertion", "ABCDE", True),
        ("spiral_matrix", "1 2 3", True),
        ("spiral_matrix", " exit()", False),
        ("spiral_matrix", "\n[x for x in ()]", False),
        ("string_insertion", "'A' * 10**9", False),
        ("string_insertion", "(1).__class__", False),
        ("string_insertion", "[" * 5000, True),  # more than Python's parser takes
        ("countdown", "(3 + 4.5) * 2 - .5 / 7", True),
        ("simple_integration", "3*x**2/2 - sin(2*X) + C", True),
        ("polynomial_multiplication", "9**9 + exp(2) * sqrt(pi)", True),
        ("countdown", "exit()", False),
        ("countdown", "S('x')", False),
        ("countdown", "x.free_symbols", False),
        ("countdown", "1.real", False),
        ("countdown", "[1]", False),
        ("countdown", "lambda: 1", False),
        ("countdown", "__name__", False),
        ("countdown", "", False),
        ("countdown", "1" * 100 + "!", False),  # without trying all ways to divide the ones
        ("complex_arithmetic", "-1.5 + 3j", True),
        ("complex_arithmetic", "nan", False),
        ("prime_factorization", "2 × 2×3", True),
        ("prime_factorization", "6", True),
        ("prime_factorization", "2 * 3", False),
        ("chain_sum", "exit()", True),
    ],
)
def test_what_a_scorer_would_run_does_not_come_to_it(task, answer, may):
    assert puzzles.may_be_scored(task, answer) == may


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("chain_sun", {}, "task chain_sun: is not one of reasoning-gym. Did you mean chain_sum"),
        ("composite", {}, "task composite: is not one of reasoning-gym. "),
        (
            "chain_sum",
            {"max_term": 3},
            "options.max_term: the task chain_sum has no such option. Did you mean max_terms? It has ",
        ),
        (
            "chain_sum",
            {"zzz": 3},
            "options.zzz: the task chain_sum has no such option. It has min_terms, max_terms, min_digits",
        ),
        ("chain_sum", {"size": 3}, "options.size: the task chain_sum has no such option."),
        ("chain_sum", {"min_terms": 9}, "options of task chain_sum: cannot be used (max_terms must be >= min_terms)."),
        ("chain_sum", {"min_terms": "two"}, "options of task chain_sum: cannot be used ("),
    ],
)
def test_a_task_or_option_that_cannot_be_used_is_named(task, options, message):
    with pytest.raises(UserError) as error:
        puzzles.dataset(task, options)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("task", sorted(puzzles.UNUSABLE))
def test_some_tasks_are_refused(task):
    with pytest.raises(UserError, match=f"^task {task}: "):
        puzzles.dataset(task, {})


def test_tasks_that_differ_between_processes_need_a_fixed_hash_seed(monkeypatch):
    assert puzzles.dataset("ransom_note", {})
    for value in ("random", None):
        monkeypatch.setenv("PYTHONHASHSEED", value) if value else monkeypatch.delenv("PYTHONHASHSEED")
        with pytest.raises(UserError, match=r"^task ransom_note: .*\. Start the command with PYTHONHASHSEED=0"):
            puzzles.dataset("ransom_note", {})
