"""Programs for the tests of sandboxes: hostile ones, right ones, and ones that feel along the walls."""

from dash_exp.rewards.inside import judge

LONG = "31337"  # seconds
SECRET = 271828  # what the tests expect; no hostile program can know it
TESTS = ("assert f(2) == 271828",)
EVERY_PIPE = """
import os
def pipes():
    for fd in range(256):
        try:
            os.fstat(fd)
            yield fd
        except OSError:
            pass
"""
HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "endless loop": "while True:\n    pass",
    "endless loop in a call": "def f(x):\n    while True:\n        pass",
    "waits for ever": f"import time\ntime.sleep({LONG})",
    "computes in C for ever": "def f(x):\n    return pow(3, 10**9)",
    "huge allocation": "x = bytearray(10**11)\ndef f(x): return 1",
    "growing allocation": "x = [0]\nwhile True:\n    x = x + x",
    "huge output": "import sys\nwhile True:\n    print('x' * 10**6)\n    sys.stderr.write('y' * 10**6)",
    "full disk": """
def f(x):
    i = 0
    while True:
        open(f'/tmp/left_behind{i}', 'wb').write(b'x' * 10**6)
        i += 1
""",
    "writes everywhere": """
import os
def f(x):
    for folder in ('/', '/usr', '/dev', '/dev/shm', '/var/tmp', '/root', '/home', '/etc'):
        try:
            open(folder + '/left_behind', 'w').write('x')
            return 271828
        except OSError:
            pass
""",
    "deletes everything": "import shutil\nshutil.rmtree('/', ignore_errors=True)",
    "exits with 0": "import sys\nsys.exit(0)",
    "exits with 0 in a call": "import sys\ndef f(x):\n    sys.exit(0)",
    "leaves without clean-up": "import os\nos._exit(0)",
    "leaves without clean-up in a call": "import os\ndef f(x):\n    os._exit(0)",
    "leaves at exit": "import atexit, os\natexit.register(os._exit, 0)",
    "raises SystemExit of its own": "class Exit(SystemExit): pass\ndef f(x):\n    raise Exit(0)",
    "equal to everything": """
class Any(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def f(x): return Any(1)
""",
    "an object that agrees to everything": """
class Yes:
    def __getattr__(self, name): return self
    def __call__(self, *args, **kwargs): return True
    def __eq__(self, other): return True
    def __contains__(self, other): return True
    def __bool__(self): return True
def f(x): return Yes()
""",
    "a descriptor of memory for numpy": """
class Memory:
    __array_interface__ = {'data': (4096, False), 'typestr': '<i8', 'shape': (1,), 'version': 3}
def f(x): return Memory()
""",
    "patches the encoder": """
import sys
inside = {name.rpartition('.')[2]: module for name, module in sys.modules.items() if name.startswith('dash_exp')}
inside['wire'].encode = lambda *_: b't' + (3).to_bytes(8, 'little') + b'11l' + bytes(8)
inside['judge'].PASSED = inside['judge'].FAILED = inside['judge'].ERROR = b'passed'
inside['judge'].judge = lambda *_: (b'passed', '')
inside['candidate'].OPERATIONS.clear()
""",
    "sends a constructor of its own": """
import sys
def s(text): return b's' + len(text).to_bytes(8, 'little') + text
def n(tag, count): return tag + count.to_bytes(8, 'little')
call = n(b'v', 2) + s(b'os.system') + s(b'touch /tmp/left_behind')
sys.modules['dash_exp.rewards.inside.wire'].encode = lambda *_: n(b't', 3) + b'1' + call + n(b'l', 0)
""",
    "changes what is not its own": """
import sys
def n(tag, count): return tag + count.to_bytes(8, 'little')
change = n(b'l', 1) + n(b't', 2) + n(b'i', 1) + b'\\0' + n(b't', 1) + b'1'
sys.modules['dash_exp.rewards.inside.wire'].encode = lambda *_: n(b't', 3) + b'11' + change
""",
    "patches the libraries": """
import builtins, math, sys, unittest
builtins.abs = builtins.float = builtins.len = builtins.isinstance = lambda *_: True
math.isclose = unittest.TestCase.assertEqual = lambda *_: True
sys.modules['numpy'] = sys.modules['operator'] = sys.modules['math']
def f(x): return 1
""",
    "says that all went well": """
import atexit, sys
for pipe in (sys.stdout, sys.stderr, sys.__stdout__):
    print('passed ', 'OK', '1 passed in 0.01s', file=pipe, flush=True)
atexit.register(print, 'passed ')
raise SystemExit(0)
""",
    "forks and answers twice": """
import os
def f(x):
    os.fork()
    return 271827 + (os.getpid() % 2)
""",
    "answers with the right value first": """
import os
def f(x):
    return 271828 if os.fork() else 271827
""",
    "ends as a success": """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
def f(x): os.kill(os.getpid(), 15)
""",
    "an exception of its own": """
class Own(BaseException):
    def __str__(self): raise self
    __class__ = StopIteration
def f(x): raise Own
""",
    "an exception that cannot be said": """
class Own(Exception):
    def __str__(self): return self
def f(x): raise Own
""",
    "walks the frames": """
import sys
frame = sys._getframe()
while frame:
    for name, value in {**frame.f_globals, **frame.f_locals}.items():
        if callable(value) and not name.startswith('__'):
            frame.f_globals[name] = lambda *a, **k: True
    frame = frame.f_back
""",
    "patches what the garbage collector shows": """
import gc
for thing in gc.get_objects():
    if isinstance(thing, dict) and ('judge' in thing or 'decode' in thing):
        thing['judge'] = thing['decode'] = thing['receive'] = lambda *a: (b'passed', '')
""",
    "patches builtins": """
import builtins
builtins.AssertionError = type('Quiet', (Exception,), {})
builtins.exec = builtins.compile = lambda *a, **k: None
""",
    "looks for the tests": """
import gc, sys
def f(x):
    found = [v for v in gc.get_objects() if isinstance(v, (str, bytes)) or isinstance(v, dict)]
    text = repr([list(v.values()) if isinstance(v, dict) else v for v in found][:20000]) + repr(sys.argv)
    return 271828 if text.count('f(2) ==') else 0
""",
    "forges the verdict": EVERY_PIPE + "for fd in pipes():\n    try: os.write(fd, b'+passed ')\n    except OSError: pass\n",
    "forges the verdict and leaves": EVERY_PIPE
    + "for fd in pipes():\n    try: os.write(fd, b'passed ')\n    except OSError: pass\nos._exit(0)\n",
    "answers before it is asked": EVERY_PIPE
    + """
answer = b't' + (2).to_bytes(8, 'little') + b'11'
for fd in pipes():
    try:
        for _ in range(9):
            os.write(fd, len(answer).to_bytes(8, 'little') + answer)
    except OSError:
        pass
""",
    "announces an endless message": EVERY_PIPE
    + "for fd in pipes():\n    try: os.write(fd, b'\\xff' * 8)\n    except OSError: pass\nimport time\ntime.sleep(60)\n",
    "sends a huge message": "def f(x): return 'x' * (sandbox_limit + 1)".replace("sandbox_limit", str(judge.MESSAGE_BYTES)),
    "sends a deep message": "def f(x):\n    y = []\n    for _ in range(10**5):\n        y = [y]\n    return y",
    "sends itself": "def f(x):\n    y = []\n    y.append(y)\n    return y",
    "announces a huge list": EVERY_PIPE
    + """
answer = b'l' + (2**60).to_bytes(8, 'little')
def f(x):
    for fd in pipes():
        try: os.write(fd, len(answer).to_bytes(8, 'little') + answer)
        except OSError: pass
""",
    "one byte at a time": EVERY_PIPE
    + """
import time
def f(x):
    while True:
        for fd in pipes():
            try: os.write(fd, b'\\0')
            except OSError: pass
        time.sleep(0.2)
""",
    "a child that stays": f"""
import os, time
def f(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv('/bin/sleep', ['sleep', '{LONG}'])
        os._exit(0)
    time.sleep(0.3)
    return 1
""",
    "a child that stays when the program is gone": f"""
import os
if os.fork() == 0:
    os.setsid()
    os.execv('/bin/sleep', ['sleep', '{LONG}'])
os._exit(0)
""",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "ignores signals": """
import signal
for s in range(1, 32):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    "outlives its parent": "import ctypes, time\nctypes.CDLL(None).prctl(1, 0)\ntime.sleep(60)",
    "kills the first process": "import os\nos.kill(1, 9)\nos.kill(os.getppid(), 9)",
    "kills everybody": "import os\nos.kill(-1, 9)",
    "kills its group": "import os\nos.killpg(0, 9)",
    "recurses": "def f(x): return f(x)",
    "recurses to the end of the stack": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x + 1)",
    "crashes the interpreter": "import ctypes\nctypes.string_at(0)",
    "closes all pipes": "import os\nos.closerange(0, 256)",
    "wrong name": "def g(x): return 271828",
    "syntax error": "def f(x: return 271828",
    "null byte": "def f(x):\n    return 271828\n\0",
    "no text at all": "\ud800",
    "empty": "",
}
CARELESS = [
    "try:\n    f(2)\nexcept:\n    pass",
    "try:\n    assert f(2) == 271828\nexcept Exception:\n    pass",
    "import contextlib\nwith contextlib.suppress(BaseException):\n    f(2)",
]
TOLERANT = [
    "assert abs(f(2) - 271828) < 1e-6",
    "assert 271828 in f(2)",
    "assert f(2) >= 271828",
    "assert not f(2) != 271828",
    "assert f(2) in [271828]",
    "assert {271828: 1}[f(2)]",
    "import numpy as np\nassert np.allclose(f(2), 271828)",
    "import numpy as np\nassert f(2) == np.float64(271828)",
    "import math\nassert math.isclose(f(2), 271828)",
]
ESCAPES = {
    "an end of the test's own data": (
        "def f(x): raise StopIteration",
        "for got, wanted in zip(map(f, [1, 2]), [2, 3]):\n    assert got == wanted",
    ),
    "an end of all": ("def f(x): raise StopIteration", "assert all(a == b for a, b in zip(map(f, [1, 2]), [2, 3]))"),
    "an empty list for a number": ("def f(x): return []", "import numpy as np\nassert np.allclose(f(2), 2.5, rtol=1e-07)"),
    "an empty range for a list": ("def f(x): return range(0)", "import numpy\nassert numpy.allclose(f(2), [2.5])"),
}
WALLS = {
    "limit of processes": (
        """
import os, time
def f():
    for n in range(100):
        try:
            if os.fork() == 0:
                time.sleep(60)
        except BlockingIOError:
            return n
""",
        "assert f() == 3",  # and itself: four
    ),
    "limit of threads": (
        """
import threading, time
def f():
    for n in range(100):
        try:
            threading.Thread(target=time.sleep, args=[60], daemon=True).start()
        except RuntimeError:
            return n
""",
        "assert f() == 3",
    ),
    "limit of memory": (
        "def f(mib):\n    try:\n        return len(bytearray(mib << 20))\n    except MemoryError:\n        return None",
        "assert f(100) == 100 << 20\nassert f(256) is None",
    ),
    "limit of all memory together": (
        """
import os
def f():
    # each process takes what it can get, as long as the others hold theirs
    total, ends = 0, []
    for _ in range(4):
        out, into = os.pipe()
        try:
            child = os.fork()
        except BlockingIOError:
            break
        if child == 0:
            held = []
            try:
                while True:
                    held.append(bytearray(1 << 20))
            except MemoryError:
                os.write(into, b'%4d' % len(held))
                import time
                time.sleep(60)
        total += int(os.read(out, 4))
    return total
""",
        "assert 300 < f() < 3 * 256",
    ),
    "limit of files": (
        """
def f():
    n = 0
    try:
        for i in range(100):
            with open(f'/tmp/left_behind{i}', 'wb') as file:
                file.write(bytes(1 << 20))
            n += 1
    except OSError as error:
        return n, error.errno
""",
        "import errno\nn, why = f()\nassert why == errno.ENOSPC\nassert 8 <= n <= 16",
    ),
    "limits cannot be raised": (
        """
import resource
def f():
    done = []
    for name in dir(resource):
        if name.startswith('RLIMIT_'):
            kind = getattr(resource, name)
            soft, hard = resource.getrlimit(kind)
            if hard != resource.RLIM_INFINITY:
                try:
                    resource.setrlimit(kind, (hard, hard + 1))
                    done.append(name)
                except (ValueError, OSError):
                    pass
    return done, resource.getrlimit(resource.RLIMIT_AS)[1]
""",
        "assert f() == ([], 256 << 20)",
    ),
    "no rights": (
        """
import os
def f():
    done = []
    device = (os.mknod, '/tmp/d', 0o60600, 1)
    for call, *arguments in [(os.setuid, 0), (os.setgid, 0), (os.setgroups, [0]), (os.chroot, '/tmp'), device]:
        try:
            call(*arguments)
            done.append(call.__name__)
        except OSError:
            pass
    return done, os.getuid() == 0
""",
        "assert f() == ([], False)",
    ),
    "no network": (
        """
import socket
def f():
    kinds = [(socket.AF_INET, 1), (socket.AF_INET6, 2), (socket.AF_UNIX, 1), (16, 3), (38, 5), (40, 1)]
    done = []
    for family, kind in kinds:
        try:
            socket.socket(family, kind)
            done.append(family)
        except PermissionError:
            pass
    return done
""",
        "assert f() == []",
    ),
    "no files of others": (
        """
import os
def f(*paths):
    return [p for p in paths if os.path.lexists(p)], sorted(os.listdir('/tmp')), sorted(os.listdir('/dev'))
""",
        "import sys\nassert f('/proc/self', '/sys', '/var', '/etc/passwd', '/etc/hostname', {home!r}, {here!r}) == "
        "([], {tmp!r}, ['null', 'random', 'urandom', 'zero'])",
    ),
    "no environment": (
        "import os\ndef f(): return 'DASH_EXP_SECRET' in os.environ, os.environ['HOME']",
        "assert f() == (False, '/tmp')",
    ),
    "no writing outside": (
        """
import os
def f():
    done = []
    for folder, _, _ in os.walk('/'):
        if not folder.startswith('/tmp'):
            try:
                open(folder + '/left_behind', 'w')
                done.append(folder)
            except OSError:
                pass
    return done
""",
        "assert f() == []",
    ),
    "no namespaces, no memory outside the limits": (
        """
import ctypes, errno, os
def f():
    c = ctypes.CDLL(None, use_errno=True)
    c.shmat.restype = ctypes.c_void_p
    calls = [
        lambda: c.unshare(0x10000000),
        lambda: c.setns(0, 0),
        lambda: c.mount(b'none', b'/tmp', b'tmpfs', 0, None),
        lambda: c.shmget(0, 1 << 20, 0o1600),
        lambda: c.memfd_create(b'x', 0),
        lambda: c.ptrace(16, os.getppid(), 0, 0),
        lambda: c.process_vm_readv(os.getppid(), None, 0, None, 0, 0),
    ]
    return [(call(), ctypes.get_errno()) == (-1, errno.EPERM) for call in calls]
""",
        "assert f() == [True] * 7",
    ),
    "nobody else": (
        """
import os
def f():
    # without /proc, by asking for every number
    found = []
    for pid in range(1, 2000):
        try:
            os.kill(pid, 0)
            found.append(pid)
        except PermissionError:
            found.append(pid)
        except ProcessLookupError:
            pass
    return len(found)
""",
        "assert f() == 2",  # itself and the first process
    ),
    "no output reaches anyone": (
        """
import os
def f():
    return [os.fstat(fd).st_rdev == os.stat('/dev/null').st_rdev for fd in (0, 1, 2)]
""",
        "assert f() == [True] * 3",
    ),
}
NODE = """
class Node:
    def __init__(self, data):
        self.data, self.left, self.right = data, None, None
def depth(node):
    return 0 if node is None else 1 + max(depth(node.left), depth(node.right))
def same(node):
    return node
"""
VALUES = [
    *(
        "None",
        "True",
        "False",
        "0",
        "-1",
        "127",
        "128",
        "-129",
        "2**64",
        "-3**5000",
        "0.5",
        "-0.0",
        "1e308",
        "float('inf')",
        "1j",
    ),
    *(
        "''",
        "'\u00e9\\ud800'",
        "b'\\0\\xff'",
        "bytearray(b'x')",
        "[]",
        "()",
        "{}",
        "set()",
        "frozenset([1])",
        "[1, (2, {3: [4]})]",
    ),
    *("{(1, 2): {3}}", "range(3, 9, 2)", "int"),
]
RIGHT = {
    "a process that it leaves behind": (
        "import os, time\nif os.fork() == 0:\n    time.sleep(60)\ndef f(x): return x + 1",
        ["assert f(1) == 2"],
    ),
    "a function": ("def f(x):\n    return x + 1", ["assert f(1) == 2", "assert f(-1) == 0"]),
    "objects of the program": (
        NODE,
        [
            "root = Node(1)\nroot.left = Node(2)\nroot.left.right = Node(3)",
            "assert depth(root) == 3\nassert depth(root.left) == 2",
        ],
    ),
    "attributes": (NODE, ["n = Node('x')\nassert n.data == 'x' and n.left is None and not hasattr(n, 'up')"]),
    "the same object": (NODE, ["n = Node(1)\nassert same(n) == n and same(n) is n and same(n) != Node(1)"]),
    "collections": (
        "def f(x): return x",
        [f"x = {value}\nassert f(x) == x and type(f(x)) is type(x)" for value in VALUES],
    ),
    "not a number": ("def f(x): return [x]", ["import math\nassert math.isnan(f(float('nan'))[0])"]),
    "subclasses": (
        """
from collections import Counter, namedtuple, OrderedDict, defaultdict
from enum import IntEnum
P = namedtuple('P', 'x y')
class E(IntEnum): A = 3
def f(x): return Counter(x)
def g(): return P(1, 2), OrderedDict(a=1), defaultdict(list, b=[2]), E.A
""",
        ["assert f('aab') == {'a': 2, 'b': 1}", "assert g() == ((1, 2), {'a': 1}, {'b': [2]}, 3)"],
    ),
    "iterators": (
        "def f(n):\n    yield from range(n)\ndef g(x): return map(str, x)\ndef h(d): return d.keys()",
        [
            "assert list(f(3)) == [0, 1, 2]\nassert sorted(g([1, 2])) == ['1', '2']",
            "assert set(h({1: 2})) == {1}\nassert 2 in f(3)",
        ],
    ),
    "exceptions": (
        "class Own(ValueError): pass\ndef f(x):\n    raise Own('no') if x else KeyError('k')",
        [
            "try:\n    f(1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'no'",
            "try:\n    f(0)\nexcept KeyError:\n    pass\nelse:\n    assert False",
        ],
    ),
    "keyword arguments": ("def f(a, *, b=1): return a - b", ["assert f(3, b=2) == 1\nassert f(3) == 2"]),
    "names of its own": ("LIMIT = 7\ndef f(): return LIMIT", ["assert f() == LIMIT == 7"]),
    "libraries in tests": ("def f(x): return x ** 0.5", ["assert math.isclose(f(2), math.sqrt(2))\nassert sys.maxsize > 1"]),
    "numpy in both": (
        "import numpy as np\ndef f(x): return np.mean(x)\ndef g(x): return np.int64(x)",
        ["import numpy as np\nassert np.allclose(f([1, 2]), 1.5)\nassert g(3) == 3"],
    ),
    "a task with the name of a builtin function": ("def sum(a, b): return a * b", ["assert sum(2, 5) == 10"]),
    "a type as argument": ("def f(xs, t): return [x for x in xs if type(x) != t]", ["assert f([1, 'a'], int) == ['a']"]),
    "a script with a loop over inputs": (
        "def f(a, b): return a + b",
        [
            "def check(out, exp):\n    assert out == exp, out\n",
            "inputs = [[1, 2], ['a', 'b']]\nresults = [3, 'ab']\n"
            "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    check(f(*inp), exp)",
        ],
    ),
    "prints and a main block": (
        "def f(): return 1\nprint('x' * 10**6)\nif __name__ == '__main__':\n    raise SystemExit",
        ["assert f() == 1"],
    ),
    "dataclasses": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(): return P(3)",
        ["assert f().x == 3 and P(4).x == 4"],
    ),
    "files of its own": (
        "def f():\n    open('/tmp/x', 'w').write('hello')\n    return open('/tmp/x').read()",
        ["assert f() == 'hello'"],
    ),
    "large values": ("def f(n): return list(range(n))", ["assert f(10**5) == list(range(10**5))"]),
    "text of a value": (
        "from fractions import Fraction\ndef f(): return Fraction(1, 2)",
        ["assert str(f()) == '1/2' and float(f()) == 0.5"],
    ),
}
WRONG = [
    ("def f(x): return x", ["assert f(1) == 2"], "failed"),
    ("def f(x): return 2", ["assert f(1) == 2", "assert f(1) == 3"], "failed"),
    ("def f(x): raise ValueError", ["assert f(1) == 2"], "failed"),
    ("def f(x): import nothing_of_that_name", ["assert f(1) == 2"], "failed"),
    (NODE, ["assert Node(1) == Node(1)"], "failed"),
    ("def g(x): return 2", ["assert sum(1, 2) == 3"], "failed"),
    ("def f(x): return x(1)", ["assert f(lambda y: y) == 1"], "error"),  # a function of the tests cannot be sent
    ("def f(x): return 1", ["import nothing_of_that_name\nassert f(1) == 1"], "error"),
    ("def f(x): return 1", ["assert 1 == 1"], "error"),
    ("def f(x): return 1", ["assert f(1) =="], "error"),
]
