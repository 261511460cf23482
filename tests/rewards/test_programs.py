import pytest

from dash_exp.rewards.programs import program_of

F = "def f(x):\n    return 2 * x\n"
G = "def g(x):\n    return x + x\n"


def block(program, language="python", fence="```"):
    return f"{fence}{language}\n{program}{fence}\n"


def indented(text, first="   ", rest="   "):
    return first + text.replace("\n", "\n" + rest).rstrip(" ")


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1", "x = 1"),
        ("So:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```python\nx = 1\n```\n```python\nx = 2\n```\n```\nx = 3\n```", "x = 2\n"),
        ("```\nx = 1\n```\n```text\nx = 2\n```", "x = 2\n"),
        ("```py\nx = 1\n```\n```\nprints 1\n```", "x = 1\n"),
        ("```python\nx = 1\ny = 2", "x = 1\ny = 2"),
        ("  ```Python title\n  x = 1\n  ```", "x = 1\n"),
        ("`x`", "`x`"),
        ("", ""),
    ],
)
def test_the_program_in_a_completion_whatever_the_tests_use(text, program):
    assert program_of(text) == program


ANSWERS = {
    "no fence": F,
    "no fence, a space before it": " " + F,
    "prose around it": f"Here it is:\n\n{block(F)}\nIt doubles `x`.",
    "other names of the language": block(F, "Python3") + block("x = 1\n", "text"),
    "braces around the language": block(F, "{.python .numberLines}"),
    "no language": block(F, ""),
    "tildes": block(F, "python", "~~~"),
    "a longer fence": block(F + "'''\n```\n'''\n", "python", "````"),
    "carriage returns": block(F).replace("\n", "\r\n"),
    "cut off": f"First:\n```python\n{F}",
    "cut off in an example": block(F) + "Use it:\n```python\nprint(f(2",
    "an item of a list": "1. So:\n\n" + indented(block(F)) + "2. Done.",
    "behind the number of an item": indented(block(F), "1. "),
    "behind a bullet": indented(block(F), "- ", "  "),
    "a tab before it": indented(block(F), "\t", "\t"),
    "a fence within its own text": block(f'def f(x):\n    """Double.\n\n    ```\n    f(2)\n    ```\n    """\n{F}'),
    "a stray fence behind it": F + "```\n",
    "a stray fence behind it, and prose": F + "```\nThis doubles x.\n",
    "a stray fence behind it, and an example": F + "```\nFor example:\n" + block("f(2)\n"),
    "a stray fence behind a block": block(F) + "```\n",
    "an empty block behind it": block(F) + block("\n"),
    "not closed before the next": f"```python\n{F}Example:\n".replace("Example:\n", "") + block("print(f(2))\n"),
    "an example of use": block(F) + block("print(f(2))\nresult = f(3)\nx: int = 2\n"),
    "an example that imports it": block(F) + block("from solution import f\nassert f(1) == 2\n"),
    "an example that has its name in a comparison": block(F) + block("f == 2\nf(x=3)\n"),
    "a session": block(F) + block(">>> f(2)\n4\n"),
    "tests": block(F) + block("import unittest\nclass TestF(unittest.TestCase):\n    def test(self):\n        f(2)\n"),
    "its output": block(F) + block("4\n", ""),
    "a shell": block("pip install x\n", "bash") + block(F) + block("python f.py\n", "bash"),
    "a draft": block("def f(x):\n    return x\n") + "No, wrong:\n" + block(F),
    "a draft within thoughts": "<think>\n" + block("def f(x):\n    return x\n") + "</think>\n" + block(F),
    "another language": block("class f {}\n", "java") + block(F) + block("class f {}\n", "java"),
    "a language that is none": block(F, "code"),
    "an example before it": block("result = f(2)\n") + block("def f(x):\n    result = 2 * x\n    return result\n"),
    "what it uses": block("import math\nTWO = math.floor(2.5)\ndef h(x):\n    return TWO * x\n")
    + block("def f(x): return h(x)\n"),
    "an import that it uses": block("from operator import mul\n") + block("def f(x): return mul(x, 2)\n"),
    "a lambda": block("f = lambda x: 2 * x\n") + block("y = f(2)\n"),
    "an annotation": block("from typing import Callable\nf: Callable = lambda x: 2 * x\n") + block("print(f(2))\n"),
    "a class": block("class f(int):\n    def __new__(cls, x): return 2 * x\n") + block("f(2)\n"),
    "two blocks for two names": block(F) + "and\n" + block(G),
}


@pytest.mark.parametrize("text", ANSWERS.values(), ids=ANSWERS)
def test_the_program_is_what_defines_the_names_of_the_tests(text):
    names = ["f", "g"] if "def g" in text else ["f"]
    namespace = {}
    exec(program_of(text, names), namespace)
    assert [namespace[name](3) for name in names] == [6] * len(names)


def test_nothing_is_taken_from_a_program_that_the_last_one_replaces():
    assert program_of(block(F) + block("def f(x): return 0\n"), ["f"]) == "def f(x): return 0\n"
