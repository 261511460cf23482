"""What the judge of a sandbox is asked to do, found by reading the tests. Nothing is run here."""

from __future__ import annotations

import ast
import builtins
import functools
import symtable
import sys

from dash_exp.rewards.inside import wire


@functools.lru_cache(maxsize=4096)
def order_of(tests: tuple[str, ...]) -> bytes:
    """The judge's order, encoded: the tests, the names that the program must define, and the modules to import for the tests.

    Raises SyntaxError for tests that are not Python, and ValueError for tests that use no name of the program: every program
    would pass them.
    """
    text = "\n".join(tests)
    table = symtable.symtable(text, "tests", "exec")
    bound = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    used = _globals(table) - bound
    free = used - set(dir(builtins))
    modules = {name for name in free if _is_module(name, text)}
    names = free - modules
    if not names and len(used - modules) == 1:  # the program must define the name of a builtin function
        names = used - modules
    if not names:
        raise ValueError("they use no name of the program")

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
