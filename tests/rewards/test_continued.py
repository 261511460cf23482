import pytest

from dash_exp.rewards.continued import before, continued

BEGUN = '''from typing import List


def total(xs: List[int]) -> int:
    """ The sum of xs.
    >>> total([1, 2])
    3
    """
'''
BODY = "    n = 0\n    for x in xs:\n        n += x\n    return n\n"
WHOLE = "def total(xs: List[int]) -> int:\n" + BODY
SHORT = "    return sum(xs)\n"


def block(program):
    return f"```python\n{program}```\n"


RIGHT = {
    # a base model goes on with the code
    "the body": BODY,
    "the body behind an empty line": "\n" + BODY,
    "the body without an end of line": BODY.rstrip(),
    "then another function, cut off": SHORT + "\n\ndef other(x):\n    return (\n",
    "then the same function again": SHORT + "\n\ndef total(xs):\n    return 0\n",
    "then a test that is wrong": SHORT + "\nassert total([1]) == 5\n",
    "then prose": SHORT + "\nThis adds them up.\n",
    "then a fence": SHORT + "```\n\n" + block("def total(xs):\n    return 0\n"),
    "a space too much in all lines": "\n".join(" " + line for line in BODY.splitlines()),
    "a space too much in the first line": " " + BODY,
    "the first line without its indentation": BODY.lstrip(" "),
    "the first line without its indentation opens a block": "for x in []:\n        pass\n" + SHORT,
    "then a test, the first line without its indentation": BODY.lstrip(" ") + "\nassert total([1]) == 5\n",
    "a tab": "\treturn sum(xs)\n",
    "a text with lines at the margin": '    text = """\nno code\n"""\n' + SHORT,
    "brackets with lines at the margin": "    return sum(xs[\n        0:\n])\n",
    "a block of lines alone": "    for x in [0]:\n        n = sum(xs)\n        return n\n",
    # an instruct model answers
    "the whole function, without its import": "Here it is:\n\n" + block(WHOLE) + "\nIt adds them up.",
    "all of the code": block(BEGUN + BODY),
    "without a fence": WHOLE,
    "a space before it, without a fence": " " + WHOLE,
    "a space before the answer": " Here it is:\n\n" + block(WHOLE),
    "cut off behind it": "Here:\n```python\n" + WHOLE,
    "an example of use": block(WHOLE) + block("print(total([1, 2]))\n"),
    "an import that must come first": block("from __future__ import annotations\n" + WHOLE),
    "the body alone, in a block": block(BODY),
    "the body alone, in a block, at the margin": block("n = 0\nfor x in xs:\n    n += x\nreturn n\n"),
    "a line alone, in a block": block("return sum(xs)\n"),
}


def made(program, name="total"):
    namespace = {}
    exec(program, namespace)
    return namespace[name]


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_a_completion_is_the_body_or_the_whole_function(text):
    total = made(continued(text, BEGUN, "total"))
    assert [total([1, 2]), total([])] == [3, 0]


WRONG = ["", "    return 0\n", "    pass\n", block("def total(xs):\n    return 0\n"), block("x = 1\n")]


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_completion_is_no_other_program(text):
    assert made(continued(text, BEGUN, "total"))([1, 2]) != 3


def test_the_body_has_the_indentation_of_the_code():
    begun = "def half(x): return x\n\n\ndef double(x):\n  '''Double x.'''\n"
    for text in ("  y = 2 * x\n  return y\n", "    y = 2 * x\n    return y\n", block("y = 2 * x\nreturn y\n")):
        assert made(continued(text, begun, "double"), "double")(4) == 8


def test_what_stands_before_a_function():
    assert before(BEGUN, "total") == "from typing import List\n\n\n"
    assert before("def f_1(): pass\ndef f(x):\n", "f") == "def f_1(): pass\n"
    with pytest.raises(ValueError, match="has no function f"):
        before("def fx():\n", "f")
