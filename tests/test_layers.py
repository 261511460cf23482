"""Imports go one way, and only the outermost modules know Hydra."""

import ast

from conftest import ROOT

LAYERS = [
    {"errors", "words", "types", "files", "grading", "workers", "sandbox", "sandbox_inside", "stats", "intervals"}
    | {"overrides", "validate", "checks", "devices", "targets", "credentials", "watch"},
    {"ops", "metrics", "process", "packing", "adapter", "optimizer", "costs", "machine"},
    {"algo", "kl", "filter", "batch", "ranks", "sharded"},
    {"reward", "data", "model"}
    | {"sampler", "sampler.cache", "sampler.decode", "sampler.hf", "sampler.traces", "sampler.teacher"}
    | {"sampler.refresh", "sampler.engine", "sampler.vllm", "sampler.vllm_server", "sampler.nccl", "server"},
    {"evaluation", "shares", "memory"},
    {"rollout", "module"},
    {"record", "progress", "summary", "plots", "results", "budget", "snapshot", "logger", "wandb_runs", "wandb_report"},
    {"build", "sizes", "run", "sweep"},
    {"cli", "evaluate", "serve", "rank", "beside", "plan", "job", "timing", "advice"},
    {"report", "report.__main__", "report.sections", "report.panels", "report.comparison", "report.controls", "report.samples"}
    | {"report.paper", "report.figures", "report.document", "report.words"},
]
KNOW_HYDRA = {"build", "sizes", "run", "rank", "sweep", "cli", "evaluate", "serve", "beside", "plan", "job", "advice"}
KNOW_HYDRA |= {"validate", "checks", "devices"}
SOURCE = ROOT / "src" / "dash_exp"


def modules():
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__" and not name.startswith("assets"):
            yield name, ast.parse(path.read_text())


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [alias.name for alias in node.names]
            yield from ([f"dash_exp.{n}" for n in names] if node.module == "dash_exp" else [node.module])


def test_every_module_has_a_layer():
    assert {name for name, _ in modules()} == set().union(*LAYERS)


def test_imports_go_one_way():
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    for name, tree in modules():
        for target in imported(tree):
            if target.startswith("dash_exp."):
                target = target.removeprefix("dash_exp.")
                inside = name.partition(".")[0] == target.partition(".")[0]
                same_layer_ok = level[target] == level[name] and not {name, target} <= {"rollout", "module"}
                assert level[target] < level[name] or inside or same_layer_ok, f"{name} imports {target}"


def test_only_the_outermost_know_hydra():
    for name, tree in modules():
        if name not in KNOW_HYDRA:
            assert not [t for t in imported(tree) if t.split(".")[0] in ("hydra", "omegaconf")], name
