"""How the judge compares arrays.

numpy broadcasts, and so it finds an empty list equal to any number, and a number equal to a list of it. Here the functions that compare want equal shapes, and so does `==` between two arrays; no operation takes an empty array
together with one that is not empty.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

COMPARE = ("allclose", "isclose", "array_equiv")
ASSERT = (
    *("assert_allclose", "assert_almost_equal", "assert_array_equal", "assert_array_almost_equal"),
    *("assert_array_almost_equal_nulp", "assert_array_max_ulp"),
)

_strict: Any = None


def strict() -> Any:
    """Make numpy compare shapes, in this process. Returns the class of the arrays that do."""
    global _strict
    if _strict is not None:
        return _strict
    import numpy
    import numpy.testing

    plain = numpy.asarray

    class array(numpy.ndarray):  # noqa: N801 (it is shown and sent as numpy's own)
        __module__, __qualname__ = "numpy", "ndarray"

        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **more: Any) -> Any:
            if method == "__call__":
                if len({plain(value).size == 0 for value in inputs}) > 1:
                    raise ValueError("an empty array and one that is not")
                shapes = {value.shape for value in inputs if isinstance(value, numpy.ndarray)}
                if ufunc in (numpy.equal, numpy.not_equal) and len(shapes) > 1:
                    raise ValueError("arrays of different shapes")
            if "out" in more:
                more["out"] = tuple(value if value is None else plain(value) for value in more["out"])
            return getattr(ufunc, method)(*map(_base, inputs), **more)

    def _base(value: Any) -> Any:
        return plain(value) if isinstance(value, array) else value

    def viewed(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: function(*args, **kwargs).view(array)

    def checked(function: Callable[..., Any], otherwise: Callable[[], Any]) -> Callable[..., Any]:
        def compare(*args: Any, **kwargs: Any) -> Any:
            first, second = [*args, *kwargs.values()][:2]
            return function(*args, **kwargs) if plain(first).shape == plain(second).shape else otherwise()

        return compare

    def unequal() -> None:
        raise AssertionError("shapes differ")

    for name in COMPARE:
        setattr(numpy, name, checked(getattr(numpy, name), lambda: numpy.False_))
    for name in ASSERT:
        setattr(numpy.testing, name, checked(getattr(numpy.testing, name), unequal))
    for name in ("array", "asarray", "asanyarray"):
        setattr(numpy, name, viewed(getattr(numpy, name)))
    _strict = array
    return _strict


def received(*parts: Any) -> Any:
    """An array that the candidate sent."""
    from dash_exp.rewards.inside import wire

    return wire.array(*parts).view(strict())
