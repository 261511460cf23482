"""Small tasks in the format of MBPP, for the tests of the data set and of the code reward: (text, program, tests)."""

TASKS = [
    (
        "Write a function to add two numbers.",
        "def add(a, b):\r\n    return a + b",
        ["add(1, 2) == 3", "add(-1, 1) == 0", "add('a', 'b') == 'ab'"],
    ),
    (
        "Write a function to find the largest number.",
        "def largest(xs):\n\treturn max(xs)",
        ["largest([1, 3, 2]) == 3", "largest([-5]) == -5"],
    ),
    ("Write a function to reverse a text.", "def turn(s):\n    return s[::-1]", ["turn('abc') == 'cba'", "turn('') == ''"]),
    (
        "Write a function to count vowels.",
        "def vowels(s):\n    return sum(c in 'aeiou' for c in s)",
        ["vowels('hello') == 2", "vowels('xyz') == 0"],
    ),
    (
        "Write a function to tell whether a number is prime.",
        "def prime(n):\n    return n > 1 and all(n % i for i in range(2, int(n**0.5) + 1))",
        ["prime(7)", "not prime(9)", "prime(2) == True"],
    ),
    (
        "Write a function for the n-th Fibonacci number.",
        "from functools import lru_cache\n@lru_cache(None)\ndef fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)",
        ["fib(10) == 55", "fib(90) == 2880067194370816120", "fib(0) == 0"],
    ),
    (
        "Write a function to find the common elements of two tuples.",
        "def common(a, b):\n    return tuple(set(a) & set(b))",
        ["set(common((1, 2, 3), (2, 3, 4))) == {2, 3}", "common((1,), (2,)) == ()"],
    ),
    (
        "Write a function to count each word.",
        "from collections import Counter\ndef words(s):\n    return Counter(s.split())",
        ["words('a b a') == {'a': 2, 'b': 1}", "words('') == {}"],
    ),
    (
        "Write a function to match a text that starts with a and ends with b.",
        "import re\ndef match(s):\n    return 'Found' if re.search('^a.*b$', s) else 'Not matched!'",
        ["match('axxb') == 'Found'", "match('ba') == 'Not matched!'"],
    ),
    (
        "Write a function for the area of a circle.",
        "import math\ndef circle(r):\n    return math.pi * r ** 2",
        ["math.isclose(circle(1), 3.141592653589793)", "circle(0) == 0"],
    ),
    (
        "Write a function to merge two dictionaries.",
        "def merge(a, b):\n    return {**a, **b}",
        ["merge({1: 2}, {3: 4}) == {1: 2, 3: 4}", "merge({}, {}) == {}"],
    ),
    (
        "Write a function to flatten a list.",
        "def flat(xs):\n    out = []\n    for x in xs:\n        out += flat(x) if isinstance(x, list) else [x]\n    return out",
        ["flat([1, [2, [3]]]) == [1, 2, 3]", "flat([]) == []"],
    ),
    (
        "Write a function to sort by the second item.",
        "def by_second(xs):\n    return sorted(xs, key=lambda x: x[1])",
        ["by_second([(1, 3), (2, 1)]) == [(2, 1), (1, 3)]", "by_second([]) == []"],
    ),
    (
        "Write a function to find the greatest common divisor.",
        "def gcd(a, b):\n    while b:\n        a, b = b, a % b\n    return a",
        ["gcd(12, 18) == 6", "gcd(7, 3) == 1"],
    ),
    (
        "Write a function that gives the square roots of numbers.",
        "def roots(xs):\n    return [x ** 0.5 for x in xs]",
        ["roots([4, 9]) == [2.0, 3.0]", "roots([-4])[0].imag > 1.9"],
    ),
    (
        "Write a function for the binary form.",
        "def binary(n):\n    return bin(n)[2:]",
        ["binary(5) == '101'", "binary(0) == '0'"],
    ),
    (
        "Write a function to drop repeated items.",
        "def once(xs):\n    return list(dict.fromkeys(xs))",
        ["once([1, 2, 1]) == [1, 2]", "once('aab') == ['a', 'b']"],
    ),
    (
        "Write a function for the smallest heap items.",
        "import heapq as hq\ndef least(xs, n):\n    return hq.nsmallest(n, xs)",
        ["least([3, 1, 2], 2) == [1, 2]", "least([], 1) == []"],
    ),
    (
        "Write a function that yields the squares below n.",
        "def squares(n):\n    i = 0\n    while i * i < n:\n        yield i * i\n        i += 1",
        ["list(squares(10)) == [0, 1, 4, 9]", "list(squares(0)) == []"],
    ),
    (
        "Write a function to raise a number to a large power.",
        "def power(a, n):\n    return a ** n",
        ["power(3, 200) == 3 ** 200", "power(2, -1) == 0.5"],
    ),
    (
        "Write a function to divide, or say None.",
        "def divide(a, b):\n    try:\n        return a / b\n    except ZeroDivisionError:\n        return None",
        ["divide(1, 2) == 0.5", "divide(1, 0) is None"],
    ),
    (
        "Write a function for the transpose.",
        "def transpose(m):\n    return [list(r) for r in zip(*m)]",
        ["transpose([[1, 2], [3, 4]]) == [[1, 3], [2, 4]]", "transpose([]) == []"],
    ),
    (
        "Write a function to encode a text.",
        "def encode(s):\n    return s.encode('utf-8')",
        ["encode('\u00e9') == b'\\xc3\\xa9'", "encode('') == b''"],
    ),
    (
        "Write a function for the mean.",
        "import statistics\ndef mean(xs):\n    return statistics.fmean(xs)",
        ["abs(mean([1, 2]) - 1.5) < 1e-9", "mean([0]) == 0"],
    ),
]


def row(i: int, task_id: int) -> dict:
    """Task `i` as a line of mbpp.jsonl."""
    text, code, tests = TASKS[i % len(TASKS)]
    return {
        "text": text,
        "code": code,
        "task_id": task_id,
        "test_setup_code": "",
        "test_list": [f"assert {test}" for test in tests],
        "challenge_test_list": [],
    }
