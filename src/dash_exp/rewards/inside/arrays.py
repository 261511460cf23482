"""How the judge compares arrays.

numpy broadcasts, and so it finds an empty list equal to any number, and a number equal to a list of it. Here the functions that
compare want equal shapes, and so does `==` between two arrays; no operation takes an empty array together with one that is not
empty.
"""

from __future__ import annotations

import sys

from dash_exp.rewards.inside import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

COMPARE = ("allclose", "isclose", "array_equiv")
ASSERT = (
    *("assert_allclose", "assert_almost_equal", "assert_array_equal", "assert_array_almost_equal"),
    *("assert_array_almost_equal_nulp", "assert_array_max_ulp"),
)


def received(*parts: Any) -> Any:
    """An array that the candidate sent."""
    compare_shapes()
    return sys.modules["numpy"].asarray(wire.array(*parts))


def compare_shapes() -> None:
    """Make numpy compare shapes, in this process."""
    import numpy

    if hasattr(numpy.asarray, "plain"):  # done before
        return
    strict = _strict_array(numpy)
    for name in COMPARE:
        setattr(numpy, name, _checked(getattr(numpy, name), numpy.asarray, lambda: numpy.False_))
    for name in ("array", "asanyarray", "asarray"):
        setattr(numpy, name, _viewed(getattr(numpy, name), strict))


def compare_shapes_in_testing() -> None:
    """Make numpy.testing do so too; it takes long to import."""
    import numpy.testing

    def unequal() -> None:
        raise AssertionError("shapes differ")

    for name in ASSERT:
        setattr(numpy.testing, name, _checked(getattr(numpy.testing, name), numpy.asarray, unequal))


def _checked(function: Callable[..., Any], array: Callable[[Any], Any], otherwise: Callable[[], Any]) -> Callable[..., Any]:
    """`function` of two arrays where these have the same shape, else `otherwise`."""

    def compare(*args: Any, **kwargs: Any) -> Any:
        first, second = [*args, *kwargs.values()][:2]
        return function(*args, **kwargs) if array(first).shape == array(second).shape else otherwise()

    return compare


def _viewed(function: Any, strict: type) -> Callable[..., Any]:
    def array(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs).view(strict)

    array.plain = function  # type: ignore[attr-defined]
    return array


def _strict_array(numpy: Any) -> type:
    """The class of arrays whose shapes are compared; it is shown and sent as numpy's own."""
    plain = numpy.asarray

    def base(value: Any) -> Any:
        return plain(value) if isinstance(value, array) else value

    class array(numpy.ndarray):  # noqa: N801
        __module__, __qualname__ = "numpy", "ndarray"

        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **more: Any) -> Any:
            if method == "__call__":
                if len({plain(value).size == 0 for value in inputs}) > 1:
                    raise ValueError("an empty array and one that is not")
                shapes = {value.shape for value in inputs if isinstance(value, numpy.ndarray)}
                if ufunc in (numpy.equal, numpy.not_equal) and len(shapes) > 1:
                    raise ValueError("arrays of different shapes")
            if "out" in more:
                more["out"] = tuple(map(base, more["out"]))
            return getattr(ufunc, method)(*map(base, inputs), **more)

    return array
