"""Writes the generated pages of the documentation: `python docs/generate.py`; with `--check` it only compares them.

docs/reference/config/ and docs/reference/sweeps.md come from the comments in conf/ and sweeps/, docs/reference/metrics.md from
the declared metrics, docs/questions.md from sweeps/ and docs/results/. The convention for comments in conf/:

- The comment lines at the top of a file describe the file.
- An option is explained at the end of its line or in the comment lines directly above it.
- A `{...}` on one line is one option. A section needs a comment only where it has a `_target_`.
- An option is explained once: in config.yaml, or in the file of its group that the others start from or that is the default. A
  comment on it in a file that starts from that one, or in a file of another group, is a note on that file's value.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path

import yaml
from questions import questions_page
from writing import NOTICE, first_sentence, page, paragraphs, prose, table

from dash_exp.core.metrics import FAMILIES, METRICS, Metric

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "reference"

# Every group of conf/: what it decides. In the order of the pages.
GROUPS = {
    "algo": "The algorithm: advantage, loss, weight of each token and denominator. It also chooses a batch, and "
    "where it has its own, a filter or a KL.",
    "batch": "Sizes of an outer step: prompts, group size, prompts per sampling call, passes and mini-batches, and the token "
    "budget of a backward pass.",
    "data": "The problems to train on and the test sets. Each file also chooses a reward.",
    "experiment": "Complete settings, chosen in addition to the groups.",
    "filter": "Which completions enter the gradient.",
    "hydra/launcher": "Where the cells of a sweep run. Without it (`basic`) they run one after the other in this process.",
    "kl": "Coefficient, estimator and schedule of the KL term. A number works as well: `kl=0.01`, or in a sweep `kl=0,0.04`.",
    "logger": "Where metrics go in addition to the files of the run folder: one tracker, or several as in "
    "`logger=[wandb,tensorboard]`.",
    "model": "The policy. Options that every model has are in [`model` of the main page](index.md#model).",
    "prompt": "How the model is asked: by text or in its chat template, with what stands around the problem, and what ends an "
    "answer.",
    "reward": "What a completion is worth. The data set chooses one.",
    "rollout": "The sampler, and what happens to its completions before they are trained on.",
    "scale": "For the files of `sweeps/` only, added with `+scale=paper`.",
    "select": "Which prompts are sampled, by what their earlier completions, or the first few, were worth.",
    "teacher": "The model that writes the solutions for `algo=sft_m`.",
    "test": "One more test set: `+test@data.tests.NAME=OPTION`. `NAME` is yours, and part of the metric's name: "
    "`accuracy/NAME`. Each file but `jsonl` brings the reward that grades it; `reward@data.tests.NAME.reward=...` replaces it, "
    "and `data.tests.NAME.reward=null` leaves it to the reward of the run.",
    "trainer": "The devices, as options of Lightning's Trainer.",
}


@dataclass(frozen=True)
class Option:
    """A key with its full name, its value as the file has it ("" for a section) and its comment in this file.

    `is_target`: the value is that of `_target_`.
    """

    key: str
    value: str
    comment: str
    is_target: bool = False


@dataclass(frozen=True)
class File:
    """One file of conf/ or sweeps/. `name` is what is typed for it; `starts_from` are files of the same group."""

    group: str
    name: str
    description: str
    starts_from: tuple[str, ...]
    chooses: tuple[str, ...]
    options: tuple[Option, ...]

    def owns(self, key: str) -> bool:
        """Whether options of this name belong to the file's group, and not to another one that it changes."""
        return not self.group or key.startswith(prefix(self.group)) or f"{key}." == prefix(self.group)


def prefix(group: str) -> str:
    """What stands before the options of a group's files on the command line."""
    return "data.tests.NAME." if group == "test" else f"{group.replace('/', '.')}."


# --- reading a file ----------------------------------------------------------------------------------------------------


def read(path: Path, group: str) -> File:
    """A YAML file with its comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    top = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    comments = [line.removeprefix("#").removeprefix(" ") for line in lines[:top]]
    is_global = not group or comments[:1] == ["@package _global_"]
    description = "\n".join(line for line in comments if not line.startswith("@package"))
    tree = yaml.compose("\n".join(lines))
    options = tuple(_options(tree, "" if is_global else prefix(group), lines, top))
    if not is_global and (called := _target(tree)):
        options = (Option(prefix(group).removesuffix("."), called, "", is_target=True), *options)
    starts_from, chooses = _defaults(tree)
    return File(group, path.name.removesuffix(".yaml"), description, starts_from, chooses, options)


def _options(tree: yaml.MappingNode, before: str, lines: Sequence[str], top: int) -> Iterator[Option]:
    for key, value in tree.value:
        if key.value in ("_target_", "_partial_", "defaults"):
            continue
        name, comment = before + key.value, _comment(key, value, lines, top)
        if not isinstance(value, yaml.MappingNode) or value.flow_style:
            yield Option(name, _text(value, lines), comment)
            continue
        if comment or _target(value):
            yield Option(name, _target(value), comment, is_target=True)
        yield from _options(value, f"{name}.", lines, top)


def _comment(key: yaml.Node, value: yaml.Node, lines: Sequence[str], top: int) -> str:
    """The comment lines directly above a key and the comment at the end of its line, as one text."""
    first = key.start_mark.line
    above = first
    while above > top and lines[above - 1].lstrip().startswith("#"):
        above -= 1
    is_block = not isinstance(value, yaml.ScalarNode) and not value.flow_style
    end = key.end_mark if is_block else value.end_mark
    found = re.search(r"(?:^|\s)#\s?(.*)", lines[end.line][end.column :])
    texts = [line.strip().lstrip("# ") for line in lines[above:first]] + ([found[1]] if found else [])
    return " ".join(texts)


def _text(value: yaml.Node, lines: Sequence[str]) -> str:
    """A value as the file has it; a list over several lines on one."""
    if isinstance(value, yaml.SequenceNode) and not value.flow_style:
        return f"[{', '.join(_text(item, lines) for item in value.value)}]"
    start, end = value.start_mark, value.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column]
    assert isinstance(value, yaml.MappingNode) and value.flow_style, f"a value over several lines: {start}"
    return " ".join([lines[start.line][start.column :], *map(str.strip, lines[start.line + 1 : end.line + 1])])


def _target(tree: yaml.Node) -> str:
    """The function or class of a section, "" without one."""
    return next((value.value for key, value in tree.value if key.value == "_target_"), "")


def _defaults(tree: yaml.MappingNode) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files of the same group that a file starts from, and its choices in other groups."""
    entries = next((value.value for key, value in tree.value if key.value == "defaults"), [])
    starts_from, chooses = [], []
    for entry in entries:
        if isinstance(entry, yaml.ScalarNode):
            is_own = entry.value != "_self_" and not entry.value.startswith("/")  # /any_keys@KEY is no file
            starts_from += [entry.value] if is_own else []
        else:
            group, name = entry.value[0][0].value, entry.value[0][1].value
            chooses += [f"{group.removeprefix('override ').removeprefix('/')}={name}"] if name != "null" else []
    return tuple(starts_from), tuple(chooses)


# --- what an option means ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conf:
    """All files of conf/, `main` being config.yaml."""

    folder: Path
    groups: Sequence[str] = field(default_factory=lambda: list(GROUPS))

    @cached_property
    def main(self) -> File:
        return read(self.folder / "config.yaml", "")

    @cached_property
    def files(self) -> dict[str, list[File]]:
        """By group; the default comes first, then what others start from."""
        found = {}
        for group in self.groups:
            files = [read(path, group) for path in sorted((self.folder / group).glob("*.yaml"))]
            found[group] = sorted(files, key=lambda file: (not self.is_default(file), bool(file.starts_from), file.name))
        return found

    def is_default(self, file: File) -> bool:
        return f"{file.group}={file.name}" in self.main.chooses

    def meaning(self, file: File, option: Option) -> str:
        """The explanation of an option and the file's own note on it. "" where nothing explains it."""
        before, note = self._explained(file, option.key), option.comment
        if not (before and note):
            return before or note
        return f"{before.rstrip('.')}{'.' if note[0].isupper() else ';'} {note}"

    def unexplained(self) -> list[str]:
        """Options without an explanation, as `FILE: KEY`."""
        return [
            f"conf/{file.group}/{file.name}.yaml: {option.key}".replace("//", "/")
            for file in (self.main, *(file for files in self.files.values() for file in files))
            for option in file.options
            if not self.meaning(file, option) and option.key != prefix(file.group).removesuffix(".")
        ]

    def _explained(self, file: File, key: str) -> str:
        """What other files say of an option: those that this one starts from, or where none does, the group that owns it."""
        for name in file.starts_from if file.group else ():
            start = next(f for f in self.files[file.group] if f.name == name.partition("@")[0])
            for option in start.options:
                if option.key == key and (text := self.meaning(start, option)):
                    return text
        own = next((o.comment for o in file.options if o.key == key), "")
        if own and file.owns(key):
            return ""
        defaults = [f for files in self.files.values() for f in files if self.is_default(f)]
        everywhere = [f for files in self.files.values() for f in files]
        for places in ([self.main], defaults, everywhere):
            texts = {o.comment for f in places if f.owns(key) for o in f.options if o.key == key and o.comment}
            if texts:
                return texts.pop() if len(texts) == 1 else ""
        return ""


# --- writing the pages -------------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Every generated page by its path."""
    conf = Conf(ROOT / "conf")
    sweeps = [read(path, "") for path in sorted((ROOT / "sweeps").glob("*.yaml"))]
    found = {PAGES / "config" / f"{page_name(group)}.md": group_page(conf, group) for group in GROUPS}
    found[PAGES / "config" / "index.md"] = main_page(conf)
    found[PAGES / "sweeps.md"] = sweeps_page(sweeps)
    found[PAGES / "metrics.md"] = metrics_page()
    found[PAGES.parent / "questions.md"] = questions_page({sweep.name: question(sweep) for sweep in sweeps})
    return found


def page_name(group: str) -> str:
    return group.rpartition("/")[2]


def main_page(conf: Conf) -> str:
    """The groups, and the options of config.yaml section by section."""
    rows = []
    for group, summary in GROUPS.items():
        names = " ".join(f"`{file.name}`" for file in conf.files[group])
        rows.append([f"[`{group}`]({page_name(group)}.md)", summary.replace("(index.md#", "(#"), names])
    options: dict[str, list[Option]] = {"": []}
    for option in conf.main.options:
        section = option.key.partition(".")[0]
        is_section = any(o.key.startswith(f"{section}.") for o in conf.main.options)
        options.setdefault(section if is_section else "", []).append(option)
    parts = [
        NOTICE.format("the comments in conf/"),
        "# Configuration",
        paragraphs(conf.main.description),
        "`python train.py --cfg job` prints all options with their values; `--cfg job --resolve` also resolves references such "
        "as `${steps}`. A value `null` means none, and `???` means that you must give it.",
        "## Groups",
        "Choose a file of a group with `GROUP=FILE`.",
        table(["group", "what it decides", "files"], rows),
        "## Options of every run",
    ]
    for section, found in options.items():
        about = next((o for o in found if o.key == section), None)
        parts += [f"### {section or 'General'}"] + ([prose(about.comment)] if about and about.comment else [])
        if about and about.value:
            parts.append(f"Calls {target(about.value)}.")
        parts.append(option_table(conf, conf.main, [o for o in found if o is not about]))
    return page(parts)


def group_page(conf: Conf, group: str) -> str:
    """A group: its files in a table, then each file with its options."""
    files = conf.files[group]
    parts = [NOTICE.format("the comments in conf/"), f"# {group}", GROUPS[group]]
    chosen = {c.partition("=")[0]: c.partition("=")[2] for c in conf.main.chooses}.get(group)
    parts += [f"Default: `{group}={chosen}`."] if chosen else []
    rows = [[f"[`{typed(file)}`](#{anchor(file)})", prose(first_sentence(file.description))] for file in files]
    parts.append(table(["choice", "description"], rows))
    for file in files:
        parts += [f"## {typed(file)} {{ #{anchor(file)} }}", paragraphs(file.description)]
        links = ", ".join(f"[`{group}={name}`](#{anchor_of(group, name)})" for name in file.starts_from if "@" not in name)
        facts = [f"Starts from {links}."] if links else []
        choices = [c.replace("@reward", f"@{prefix(group)}reward") for c in file.chooses]
        facts += ["Also chooses " + ", ".join(f"`{choice}`" for choice in choices) + "."] if choices else []
        called = next((o.value for o in file.options if o.key == prefix(group).removesuffix(".")), "")
        facts += [f"Calls {target(called)}."] if called else []
        parts += [" ".join(facts)] if facts else []
        rest = [o for o in file.options if o.key != prefix(group).removesuffix(".")]
        parts += [option_table(conf, file, rest)] if rest else []
    return page(parts)


def sweeps_page(sweeps: Sequence[File]) -> str:
    """Every file of sweeps/: its question, its cells and its commands."""
    parts = [
        NOTICE.format("the files in sweeps/"),
        "# Sweeps",
        "Each file in `sweeps/` is one study. A *cell* is one run of it; cells that differ only in the seed are an *arm*. "
        "Without `+scale=paper` a sweep runs on the embedded model and problems; with it, on the paper's models, data and "
        "hyper-parameters, which need a GPU. [Sweeps and reports](../how-to/sweeps-and-reports.md) explains the rest.",
        table(["sweep", "asks", "cells"], [[f"[`{s.name}`](#{s.name})", prose(title(s)), cells(s)] for s in sweeps]),
    ]
    for sweep in sweeps:
        values = {option.key: option.value for option in sweep.options}
        paper = {k.removeprefix("study.paper."): v for k, v in values.items() if k.startswith("study.paper.")}
        paper |= yaml.safe_load(values.get("study.paper", "{}"))
        settings = [f"`{k}={v}`" for k, v in values.items() if not k.startswith(("study.", "hydra.")) and k != "name"]
        settings += [f"`{choice}`" for choice in sweep.chooses]
        parts += [f"## {sweep.name} {{ #{sweep.name} }}", paragraphs(sweep.description)]
        parts.append(table(["swept", "values"], [[f"`{k}`", f"`{v}`"] for k, v in swept(sweep).items()]))
        facts = [f"Question in the report: {prose(question(sweep))}", f"Cells: {cells(sweep)}."]
        facts += [f"Baseline: `{values['study.baseline']}`."] if "study.baseline" in values else []
        facts += [f"Claims: {'; '.join(claim_text(claim) for claim in claims)}."] if (claims := claimed(values)) else []
        facts.append(f"Sets {', '.join(settings)}.")
        shown = {key: value for key, value in paper.items() if key not in ("methods", "note", "table")}
        facts.append(f"With `+scale=paper`: {', '.join(f'{key} `{value}`' for key, value in shown.items())}.")
        parts.append("\n".join(f"- {fact}" for fact in facts))
    return page(parts)


def claimed(values: Mapping[str, str]) -> list[dict[str, object]]:
    """The claims of a sweep."""
    return yaml.safe_load(values.get("study.claims", "[]"))


def claim_text(claim: Mapping[str, object]) -> str:
    """A claim in the words of the file, or by its arms and kind; the rest of its options as code."""
    arms = [" ".join(side) if isinstance(side, list) else str(side) for side in (claim["arm"], claim["against"])]
    said = str(claim.get("text") or f"`{arms[0]}` against `{arms[1]}`")
    options = [f"{key}={value}" for key, value in claim.items() if key not in ("arm", "against", "text")]
    return f"{prose(said) if claim.get('text') else said} (`{' '.join(options)}`)"


def metrics_page() -> str:
    """The declared metrics."""
    return page(
        [
            NOTICE.format("the declared metrics"),
            "# Metrics",
            "Every row of `metrics.csv` is one outer step; row 0 is the base model. The trackers get the same names. A "
            "cell is blank where a metric was not measured or does not apply.",
            narrow(metric_table("metric", METRICS)),
            "## Metrics whose names depend on the run",
            narrow(metric_table("name starts with", FAMILIES)),
        ]
    )


def metric_table(first: str, metrics: Mapping[str, Metric]) -> str:
    return table([first, "unit", "meaning"], [[f"`{k}`", m.unit, prose(m.meaning)] for k, m in metrics.items()])


def swept(sweep: File) -> dict[str, str]:
    """The swept options and their values, as the sweeper reads them."""
    before = "hydra.sweeper.params."
    return {o.key.removeprefix(before): o.value.strip('"') for o in sweep.options if o.key.startswith(before)}


def question(sweep: File) -> str:
    """What a sweep asks, as its report says it."""
    return next(option.value for option in sweep.options if option.key == "study.question")


def cells(sweep: File) -> str:
    """How many runs a sweep has."""
    values = {option.key: option.value for option in sweep.options}
    if trials := values.get("hydra.sweeper.n_trials"):
        return f"{trials} trials of a search"
    counts = {key: len(value.split(",")) for key, value in swept(sweep).items()}
    arms, seeds = prod(n for key, n in counts.items() if key != "seed"), counts["seed"]
    return f"{arms * seeds} = {arms} arms x {seeds} seeds"


def title(sweep: File) -> str:
    return sweep.description.split("\n\n")[0].replace("\n", " ")


def typed(file: File) -> str:
    """How a file is chosen on the command line."""
    return {"test": "+test@data.tests.NAME", "scale": "+scale"}.get(file.group, file.group) + f"={file.name}"


def anchor(file: File) -> str:
    return anchor_of(file.group, file.name)


def anchor_of(group: str, name: str) -> str:
    return f"{page_name(group)}-{name}".replace(".", "-")


def option_table(conf: Conf, file: File, options: Sequence[Option]) -> str:
    rows = [[f"`{o.key}`", shown(o), prose(conf.meaning(file, o))] for o in options]
    return narrow(table(["option", "value", "meaning"], rows))


def narrow(three_columns: str) -> str:
    """A table that fits a phone (see site.css)."""
    return f'<div class="options" markdown>\n\n{three_columns}\n\n</div>'


def target(name: str) -> str:
    """The name of a function or class, with a link to where the API page explains it."""
    explained = re.findall(r"^::: (\S+)", (PAGES / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    is_there = any(name == entry or name.rpartition(".")[0] == entry for entry in explained)
    return f"[`{name}`][{name}]" if is_there else f"`{name}`"


def shown(option: Option) -> str:
    """The value of an option as code. That of a section with a `_target_` is the name that it calls."""
    return "" if not option.value else target(option.value) if option.is_target else f"`{option.value}`"


def main() -> None:
    written = pages()
    if missing := Conf(ROOT / "conf").unexplained():
        sys.exit("error: options without a comment:\n" + "\n".join(missing))
    stale = [path for path, text in written.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"error: {names} differ from what they are generated from. Run python docs/generate.py." if stale else 0)
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(written[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
