import pytest

from dash_exp.settings.overrides import number_of_kl


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("kl=0", "kl.coef=0"),
        ("kl=0.01", "kl.coef=0.01"),
        ("kl=0,0.04", "kl.coef=0,0.04"),
        ("kl='0','0.04'", "kl.coef=0,0.04"),
        ("kl=1e-3", "kl.coef=1e-3"),
        ("kl=-1", "kl.coef=-1"),
        ("kl=abc", "kl=abc"),
        ("kl=0.04,linear", "kl='0.04',linear"),
        ("kl='0.04','0',linear", "kl='0.04','0',linear"),
        ("kl=linear,cosine", "kl=linear,cosine"),
        ("kl=", "kl="),
        ("kl.coef=0.1", "kl.coef=0.1"),
        ("seed=0", "seed=0"),
        ("-m", "-m"),
    ],
)
def test_numbers_of_kl_are_coefficients(typed, meant):
    assert number_of_kl([typed]) == [meant]
