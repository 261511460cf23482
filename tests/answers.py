"""Programs for the tests of the judge: what they answer is right, or is made to look right. (program, tests)"""

NUMPY = "import numpy as np\n"


def _class(body: str, base: str = "", made: str = "Made()") -> str:
    return f"class Made({base}):\n    {body}\ndef f(x): return {made}"


# Objects that agree with whatever is asked of them. Each is tried on each test of AGREEABLE.
OBJECTS = {
    "shape () and length 0": _class(
        "shape = ()\n    def __len__(self): return 0\n    def __getitem__(self, i): raise IndexError"
    ),
    "a shape, a type and no items": _class(
        "shape = (); ndim = 0; size = 0; dtype = float\n    def __len__(self): return 0\n"
        "    def __iter__(self): return iter(())\n"
        "    def __getitem__(self, i): raise IndexError\n    def __float__(self): return 0.0"
    ),
    "the array protocol": _class(
        "def __array__(self, *a, **k):\n        import numpy\n        return numpy.zeros(0)\n"
        "    def __array_ufunc__(self, *a, **k): return True\n    def __array_function__(self, *a, **k): return True\n"
        "    __array_priority__ = 1000"
    ),
    "a descriptor of memory": _class("__array_interface__ = {'shape': (0,), 'typestr': '<f8', 'version': 3}"),
    "an agreeing number": _class("__eq__ = __le__ = __ge__ = lambda *_: True\n    __hash__ = int.__hash__", "int", "Made(3)"),
    "an agreeing fraction": _class(
        "__eq__ = lambda *_: True\n    __sub__ = __rsub__ = lambda *_: 0\n    __hash__ = None",
        "__import__('fractions').Fraction",
        "Made(3)",
    ),
    "an agreeing float": _class("__eq__ = lambda *_: True\n    __sub__ = __rsub__ = lambda *_: 0.0", "float", "Made(3)"),
    "an agreeing text": _class(
        "__eq__ = __contains__ = startswith = endswith = lambda *_: True\n    __hash__ = str.__hash__", "str", "Made('no')"
    ),
    "an agreeing list": _class(
        "__eq__ = __contains__ = lambda *_: True\n    __len__ = lambda _: 1\n    __iter__ = lambda _: iter([Any()])",
        "list",
        "Made()",
    ),
    "an agreeing dict": _class(
        "__eq__ = __contains__ = lambda *_: True\n    __missing__ = lambda *_: True\n    get = lambda *_: True",
        "dict",
        "Made()",
    ),
    "an agreeing set": _class("__eq__ = issubset = issuperset = __le__ = __ge__ = lambda *_: True", "set", "Made([1])"),
    "an agreeing array": _class("__eq__ = __sub__ = all = any = lambda *_: True", "__import__('numpy').ndarray", "Made((0,))"),
    "another's class": _class(
        "__class__ = float\n    __eq__ = startswith = issubset = issuperset = all = any = is_integer = lambda *_: True\n"
        "    __float__ = lambda _: 0.0"
    ),
    "every attribute": _class(
        "def __getattr__(self, name): return self\n    def __call__(self, *a, **k): return True\n"
        "    __eq__ = __contains__ = lambda *_: True"
    ),
    "a type that agrees": (
        "class Kind(type):\n    __eq__ = __instancecheck__ = lambda *_: True\n    __hash__ = type.__hash__\n"
        "class Made(metaclass=Kind):\n    __eq__ = lambda *_: True\ndef f(x): return Made"
    ),
    "a mock": "from unittest.mock import MagicMock\ndef f(x): return MagicMock(__eq__=lambda *_: True)",
    "no array of any objects": NUMPY + "def f(x): return np.array([None], dtype=object)[:0]",
    "an array of agreeing objects": NUMPY + _class("__eq__ = lambda *_: True", "", "np.array([Made()], dtype=object)"),
    "an empty array": NUMPY + "def f(x): return np.zeros(0)",
    "an empty array of many axes": NUMPY + "def f(x): return np.zeros((3, 0))",
    "a masked array": NUMPY + "def f(x): return np.ma.masked_all(3)",
    "not a number": "def f(x): return float('nan')",
    "an array of nan": NUMPY + "def f(x): return np.array(float('nan'))",
    "infinity": "def f(x): return float('inf')",
    "empty": "def f(x): return []",
    "an empty range": "def f(x): return range(0)",
    "an empty generator": "def f(x): yield from ()",
    "nothing": "def f(x): pass",
    "an exception that agrees": (
        "class Own(Exception):\n    __eq__ = lambda *_: True\n    def __str__(self): raise Own\ndef f(x): raise Own"
    ),
    "an exception of the tests": "def f(x): raise StopIteration",
}
AGREEABLE = {
    "equal": "assert f(2) == 271.5",
    "not unequal": "assert not f(2) != 271.5",
    "reversed": "assert 271.5 == f(2)",
    "in a list": "assert f(2) in [271.5]",
    "in a list of it": "assert [f(2)] == [271.5]",
    "a text": "assert f(2) == 'yes' or f(2).startswith('yes')",
    "a subset": "assert f(2).issubset({271}) and f(2).issuperset({271})",
    "math": "import math\nassert math.isclose(f(2), 271.5)",
    "difference": "assert abs(f(2) - 271.5) < 1e-6",
    "unittest": "import unittest\nunittest.TestCase().assertAlmostEqual(f(2), 271.5)",
    "a script of MBPP+": NUMPY
    + """
def is_floats(x):
    return isinstance(x, float) or isinstance(x, (list, tuple)) and all(isinstance(i, float) for i in x)
def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp
for inp, exp in zip([[2], [3]], [271.5, [271.5, 272.5]]):
    assertion(f(*inp), exp, 0)
""",
    "allclose": NUMPY + "assert np.allclose(f(2), 271.5)",
    "allclose to a list": NUMPY + "assert np.allclose([271.5, 271.5], f(2))",
    "isclose": NUMPY + "assert np.isclose(f(2), 271.5).all()",
    "isclose to a list": "from numpy import isclose\nassert isclose(f(2), [271.5, 271.5]).all()",
    "array_equal": NUMPY + "assert np.array_equal(f(2), [271.5])",
    "array_equiv": NUMPY + "assert np.array_equiv(f(2), 271.5)",
    "assert_allclose": NUMPY + "np.testing.assert_allclose(f(2), 271.5)",
    "assert_allclose by name": NUMPY + "np.testing.assert_allclose(desired=271.5, actual=f(2))",
    "assert_allclose imported": "from numpy.testing import assert_allclose\nassert_allclose(f(2), [271.5, 271.5])",
    "assert_equal": NUMPY + "np.testing.assert_equal(f(2), np.array([271.5]))",
    "assert_almost_equal": NUMPY + "np.testing.assert_almost_equal(f(2), 271.5)",
    "assert_array_equal": NUMPY + "np.testing.assert_array_equal(f(2), 271.5)",
    "assert_array_almost_equal": NUMPY + "np.testing.assert_array_almost_equal(f(2), [271.5])",
    "== of arrays": NUMPY + "assert (np.array(f(2)) == np.array([271.5, 271.5])).all()",
    "== with a number": NUMPY + "assert (np.asarray(f(2)) == 271.5).all()",
    "an array's own ==": "assert (f(2) == 271.5).all()",
    "a norm": NUMPY + "assert np.linalg.norm(np.array(f(2)) - 271.5) < 1e-6",
    "a difference of arrays": NUMPY + "assert np.all(np.abs(np.array(f(2)) - np.array([271.5])) < 1e-6)",
    "numpy's number": NUMPY + "assert np.float64(271.5) == f(2) and np.equal(f(2), 271.5)",
}

# Right programs, with the tests that they pass.
HONEST = {
    "annotations": (
        "import inspect\ndef g(x: int, y: str = 'a') -> float: return 1.0\n"
        "def f(): return [p.annotation for p in inspect.signature(g).parameters.values()]",
        ["assert f() == [int, str]", "assert g.__annotations__ == {'x': int, 'y': str, 'return': float}"],
    ),
    "annotations as types": (
        "import typing\nclass A:\n    x: int\n    y: 'A'\n"
        "def f(): return A.__annotations__['x'] is int and typing.get_type_hints(A)['y'] is A",
        ["assert f()"],
    ),
    "its own __future__": (
        "from __future__ import annotations\ndef g(x: Unknown): pass\ndef f(): return g.__annotations__['x']",
        ["assert f() == 'Unknown'"],
    ),
    "dataclasses": (
        "from dataclasses import dataclass, field, fields, asdict\n@dataclass(order=True)\nclass P:\n    x: int\n"
        "    ys: list[int] = field(default_factory=list)\n"
        "def f(x): return asdict(P(x))\ndef kinds(): return [f.type for f in fields(P)][0]",
        ["assert f(3) == {'x': 3, 'ys': []}\nassert kinds() is int", "p = P(2)\np.ys.append(5)\nassert p.x == 2"],
    ),
    "Fraction": (
        "from fractions import Fraction\ndef f(a, b): return Fraction(a, b)\ndef g(x): return x + Fraction(1, 3)",
        ["from fractions import Fraction", "assert f(2, 4) == Fraction(1, 2) == 0.5\nassert g(Fraction(1, 6)) == f(1, 2)"],
    ),
    "Decimal": (
        "from decimal import Decimal\ndef f(x): return Decimal(x) + Decimal('0.1')",
        ["from decimal import Decimal", "assert f('0.2') == Decimal('0.3')\nassert str(f('1')) == '1.1'"],
    ),
    "dates": (
        "import datetime as d\ndef f(y, m, x): return d.date(y, m, x) + d.timedelta(days=1)\n"
        "def g(x): return x - d.timedelta(hours=1)",
        [
            "from datetime import *\nassert f(2024, 2, 28) == date(2024, 2, 29)\n"
            "assert f(2024, 2, 28).isoformat() == '2024-02-29'",
            "assert g(datetime(2024, 1, 1, 0, 30)) == datetime(2023, 12, 31, 23, 30)\n"
            "assert g(datetime(2024, 1, 1, tzinfo=timezone.utc)).tzinfo == timezone.utc\n"
            "assert g(timedelta(hours=1)) == timedelta()",
        ],
    ),
    "collections": (
        "from collections import *\ndef f(x): return deque(x, maxlen=2)\ndef g(x): return Counter(x)\n"
        "def h(x): return OrderedDict(x)\n"
        "def d(x):\n    r = defaultdict(list)\n    r[x].append(1)\n    return r",
        [
            "from collections import *\nassert f([1, 2, 3]) == deque([2, 3]) and f([1]).popleft() == 1",
            "assert g('aab') == Counter('aba') and g('aab').most_common(1) == [('a', 2)]",
            "assert h([(1, 2), (3, 4)]) != OrderedDict([(3, 4), (1, 2)]) and d('k') == {'k': [1]}",
        ],
    ),
    "views of a dict": (
        "def f(d): return d.keys()\ndef g(d): return d.values()\ndef h(d): return d.items()",
        [
            "assert f({1: 2}) == {1} and list(g({1: 2})) == [2] and h({1: 2}) == {(1, 2)}\n"
            "assert len(f({1: 2})) == 1 and 1 in f({1: 2})"
        ],
    ),
    "a list changed in place": (
        "def f(x): x.sort()",
        ["x = [3, 1, 2]\nassert f(x) is None and x == [1, 2, 3]"],
    ),
    "a matrix changed in place": (
        "def f(m):\n    for row in m: row.reverse()\n    m.append([0])",
        ["row = [1, 2]\nm = [row, [3, 4]]\nf(m)\nassert m == [[2, 1], [4, 3], [0]] and row == [2, 1] and m[0] is row"],
    ),
    "other arguments changed in place": (
        "def f(d, *, s, b):\n    d['a'] = d.pop('b')\n    s |= {1}\n    b += b'x'\n    return d",
        [
            "d, s, b = {'b': [2]}, set(), bytearray()\nassert f(d, s=s, b=b) is d\n"
            "assert (d, s, b) == ({'a': [2]}, {1}, bytearray(b'x'))"
        ],
    ),
    "a change before an exception": (
        "def f(x):\n    x.clear()\n    raise ValueError",
        ["x = [1]\ntry: f(x)\nexcept ValueError: pass\nassert x == []"],
    ),
    "the same argument twice": (
        "def f(x, y):\n    x.append(1)\n    return y, x is y",
        ["x = []\nassert f(x, x) == ([1], True)"],
    ),
    "a value in itself": ("def f(x):\n    x.append(x)\n    return x", ["x = f([1])\nassert x[0] == 1 and x[1] is x"]),
    "a generator": (
        "def f(n):\n    i = 0\n    while n is None or i < n:\n        yield i\n        i += 1",
        ["assert list(f(3)) == [0, 1, 2]\nx = f(None)\nassert next(x) == 0 and next(x) == 1 and sum(f(4)) == 6"],
    ),
    "recursion": ("def f(n): return 1 if n < 2 else n * f(n - 1)", ["assert f(5) == 120 and f(300) % 293 == 0"]),
    "a class": (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
        "    def pop(self): return self.items.pop()\n"
        "    def __len__(self): return len(self.items)\n    def is_empty(self): return not self.items",
        ["s = Stack()\nassert s.is_empty()\ns.push(1)\ns.push([2])\nassert len(s) == 2 and s.pop() == [2] and s.items == [1]"],
    ),
    "an exception's text": (
        "def f(x):\n    if x < 0: raise ValueError('negative: %d' % x)\n    return x",
        ["try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert 'negative: -1' in str(e)"],
    ),
    "numpy's numbers and arrays": (
        NUMPY + "def f(x): return np.sort(np.array(x)) * 2.0\ndef g(x): return np.mean(x)\ndef h(x): return x.T @ x\n"
        "def e(): return np.zeros(0)",
        [
            NUMPY
            + "assert np.allclose(f([2, 1]), [2, 4]) and (f([2, 1]) == np.array([2, 4])).all() and f([2, 1]).shape == (2,)",
            "assert g([1, 2]) == 1.5 and g(np.arange(3)) == 1\nassert h(np.array([[1, 2]])).tolist() == [[1, 2], [2, 4]]",
            "assert (f([0, 0]) == 0).all() and len(e()) == 0 and np.array_equal(e(), []) and f([1])[0] == 2\n"
            "np.testing.assert_allclose(f([1, 2]), [2.0, 4.0])\n"
            "assert np.isclose(f([1]), [2]).all() and np.isclose(g([1]), 1)\n"
            "x = np.array([1.0, 2.0])\nx += f([1, 2])\nassert x.sum() == 9 and x.mean() == 4.5 and list(x) == [3, 6]",
        ],
    ),
    "an array, and tests without numpy": (
        NUMPY + "def f(x): return np.array(x)",
        ["assert list(f([1, 2])) == [1, 2] and f([3])[0] == 3 and f([[1]]).tolist() == [[1]] and (f([1, 2]) == 1).sum() == 1"],
    ),
}
