"""What the judge of a sandbox is asked to do, found by reading the tests. Nothing is run here."""

from __future__ import annotations

import ast
import builtins
import functools
import symtable
import sys
from collections.abc import Mapping

from dash_exp.rewards.inside import wire


class NoTestsError(ValueError):
    """The tests decide nothing; the message says why, in words that follow "the tests"."""


def names_of(tests: tuple[str, ...]) -> list[str]:
    """The names that the program must define; none where the tests decide nothing."""
    try:
        order: Mapping[str, list[str]] = wire.decode(order_of(tests), lambda _: None)
    except NoTestsError:
        return []
    return order["names"]


@functools.lru_cache(maxsize=4096)
def order_of(tests: tuple[str, ...]) -> bytes:
    """The judge's order, encoded: the tests, the names that the program must define, and the modules to import for the tests.

    Raises NoTestsError for tests that are not Python, and for tests that use no name of the program: every program would pass
    them.
    """
    text = "\n".join(tests)
    try:
        table = symtable.symtable(text, "tests", "exec")
        for piece in tests:
            ast.parse(piece)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NoTestsError(f"are not Python ({error})") from error
    bound = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    used = _globals(table) - bound
    free = used - set(dir(builtins))
    modules = {name for name in free if _is_module(name, text)}
    names = free - modules
    if not names and len(used - modules) == 1:  # the program must define the name of a builtin function
        names = used - modules
    if not names:
        raise NoTestsError("use no name of the program")

    def nothing_else(value: object) -> int:
        raise ValueError(f"{value!r} is not text")

    order = {"pieces": list(tests), "names": sorted(names), "modules": sorted(modules)}
    return wire.encode(order, nothing_else)


def _globals(table: symtable.SymbolTable) -> set[str]:
    """The global names that the tests use, functions and classes in them included."""
    top = table.get_type() == "module"
    found = {s.get_name() for s in table.get_symbols() if s.is_global() or (top and s.is_referenced())}
    return found.union(*(_globals(child) for child in table.get_children()))


def _is_module(name: str, text: str) -> bool:
    """Whether a name that is not defined means a library: it is the name of one, and only its attributes are used."""
    if name not in sys.stdlib_module_names and name != "numpy":
        return False
    nodes = list(ast.walk(ast.parse(text)))
    uses = sum(isinstance(n, ast.Name) and n.id == name for n in nodes)
    return uses == sum(isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == name for n in nodes)
