"""What a single setting must be, and how that is said."""

import pytest
from omegaconf import OmegaConf
from refusals import assert_each_is_met

from dash_exp.core.errors import UserError
from dash_exp.settings import checks

CFG = OmegaConf.create(
    {"a": {"three": 3, "half": 0.5, "none": None, "yes": True, "text": "x", "two_lines": "x\ny", "inf": 1e999}}
)
BAD = [
    (lambda: checks.sections(CFG, "a a.three"), "a.three=3: is not a section of settings. Leave it as in conf/."),
    (lambda: checks.part(CFG, "a", "b"), "is not a section of settings with b. Write null, or leave it as in conf/."),
    (lambda: checks.number(CFG, "a.text"), "a.text=x: is not a number. Write a number."),
    (lambda: checks.number(CFG, "a.yes"), "a.yes=true: is not a number. Write a number."),
    (lambda: checks.number(CFG, "a.inf"), "a.inf=inf: is not a number. Write a number."),
    (lambda: checks.number(CFG, "a.none"), "a.none=null: is not a number. Write a number."),
    (lambda: checks.number(CFG, "a.half", whole=True), "a.half=0.5: is not a whole number. Write a whole number."),
    (lambda: checks.number(CFG, "a.three", below=3), "a.three=3: is not a number below 3. Write a number below 3."),
    (lambda: checks.number(CFG, "a.three", above=3), "a.three=3: is not a number above 3. Write a number above 3."),
    (lambda: checks.number(CFG, "a.three", least=4), "a.three=3: is not a number of at least 4. Write a number of at least 4."),
    (lambda: checks.number(CFG, "a.three", above=0, most=2), "a.three=3: is not a number above 0 and at most 2."),
    (lambda: checks.number(CFG, "a.three", least=4, optional=True), "Write a number of at least 4 or null."),
    (
        lambda: checks.number(CFG, "a.three", below=1, why="it is a share"),
        "not a number below 1: it is a share. Write a",
    ),
    (lambda: checks.number(CFG, "a.text", below=1, why="it is a share"), "a.text=x: is not a number below 1. Write a number"),
    (lambda: checks.flags(CFG, "a.yes a.none"), "a.none=null: is neither true nor false. Write true or false."),
    (lambda: checks.texts(CFG, "a.text a.two_lines"), "a.two_lines='x\\ny': is not a text. Write one line of text"),
    (lambda: checks.texts(CFG, "a.three"), "a.three=3: is not a text"),
    (lambda: checks.known(CFG, "a.text", ["y", "z"]), "a.text=x: is not known. Use one of y, z."),
    (lambda: checks.known(CFG, "a.three", [True, "z"]), "a.three=3: is not known. Use one of true, z."),
]


def error_of(check) -> UserError:
    with pytest.raises(UserError) as error:
        check()
    return error.value


@pytest.mark.parametrize(("check", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_values_are_named(check, message):
    assert message in str(error_of(check))


def test_every_refusal_has_a_case():
    assert_each_is_met(checks, [error_of(check) for check, _ in BAD])


def test_good_values():
    checks.sections(CFG, "a")
    checks.part(CFG, "a.none", "b")
    checks.part(CFG, "a", "three")
    checks.numbers(CFG, "a.three a.half", above=0, most=3)
    checks.number(CFG, "a.none", optional=True)
    checks.number(CFG, "a.absent")  # as in the configuration of an earlier version
    checks.number(CFG, "b.absent.too")
    checks.flags(CFG, "a.yes a.absent")
    checks.texts(CFG, "a.text a.absent")
    checks.texts(CFG, "a.two_lines", lines=True)
    checks.known(CFG, "a.text", ["x"])
