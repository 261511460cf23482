"""Imports go down only, from room to room, and only `commands` knows Hydra."""

import ast

from conftest import ROOT

# From the ground up. Rooms on one floor do not import each other.
FLOORS = [
    {"core"},
    {"models", "settings", "distributed"},
    {"results", "algorithms", "rewards"},
    {"data"},
    {"sampling"},
    {"evaluation"},
    {"training"},
    {"planning"},
    {"commands"},
    {"report", "evaluate", "grade", "reward_model", "serve"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SOURCE = ROOT / "src" / "dash_exp"


def modules():
    """Each module as its parts (`("core", "types")`) and its syntax tree."""
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts not in (("__init__",), ("assets", "make_tokenizer")):
            yield parts, ast.parse(path.read_text())


def imported(tree):
    """Dotted names of what a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_stands_on_a_floor():
    assert {parts[0] for parts, _ in modules()} == FLOOR_OF.keys()


def test_imports_go_down():
    for parts, tree in modules():
        for target in imported(tree):
            package, _, rest = target.partition(".")
            room = rest.partition(".")[0]
            if package == "dash_exp" and room != parts[0]:
                assert FLOOR_OF[room] < FLOOR_OF[parts[0]], f"{'.'.join(parts)} imports {target}"


def test_no_circle_inside_a_room():
    names = {".".join(parts).removesuffix(".__init__"): tree for parts, tree in modules()}
    uses = {}
    for name, tree in names.items():
        found = set()
        for target in imported(tree):
            target = target.removeprefix("dash_exp.")
            found.add(target if target in names else target.rpartition(".")[0])  # a module, or a name in one
        uses[name] = found & names.keys()
    while leaves := {name for name, used in uses.items() if not used}:
        uses = {name: used - leaves for name, used in uses.items() if name not in leaves}
    assert not uses, f"these import each other: {sorted(uses)}"


def test_only_commands_knows_hydra():
    for parts, tree in modules():
        if parts[0] != "commands":
            assert not [t for t in imported(tree) if t.partition(".")[0] == "hydra"], parts


def test_every_room_says_what_is_done_there():
    for room in FLOOR_OF.keys() - {"evaluate", "grade", "reward_model", "serve"}:
        assert ast.get_docstring(ast.parse((SOURCE / room / "__init__.py").read_text())), room
