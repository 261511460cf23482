"""Completions of the same problems in each arm."""

from __future__ import annotations

from dash_exp.report import comparison, samples
from dash_exp.report.document import Block, Paragraph, Sample, Samples, Section
from dash_exp.report.sections.context import Context


def section(c: Context) -> Section:
    """A few problems of one outer step, with completions of every arm."""
    seed, step, chosen = samples.choose(c.results)
    title = "Sample completions"
    if not chosen:
        return Section("samples", "Samples", title, [Paragraph("The arms have no recorded completions of the same problem.")])
    said = f"From outer step {step}, the last step that all arms recorded, with seed {seed}."
    if any(samples.PAID in record for of_arm in chosen.values() for records in of_arm.values() for record in records):
        said += " Wrong completions that have a reward come first."
    blocks: list[Block] = [Paragraph(said)]
    for of_arm in chosen.values():
        first = next(iter(of_arm.values()))[0]
        each = []
        for arm, records in of_arm.items():
            whose = "written trace; " if comparison.learns_from_traces(c.results, arm) else ""
            texts = [(whose + sample_facts(r), samples.shortened(str(r.get("completion", "")))) for r in records]
            each.append(Sample(c.named(arm), texts))
        blocks.append(Samples(str(first.get("prompt", "")), str(first.get("answer", "")), each))
    return Section("samples", "Samples", title, blocks)


def sample_facts(record: samples.Record) -> str:
    """`wrong, but reward 0.50 (right 0.00, format 1.00), advantage +0.50, kept`"""
    reward, advantage = record.get("reward"), record.get("advantage")
    of_parts = {key.removeprefix("reward/"): value for key, value in record.items() if key.startswith("reward/")}
    numbers = {name: value for name, value in of_parts.items() if isinstance(value, int | float) and "accepted" not in name}
    parts = ", ".join(f"{name} {value:.2f}" for name, value in numbers.items())
    said = [f"reward {reward:.2f}" + (parts and f" ({parts})") if isinstance(reward, int | float) else "no reward"]
    said += [f"advantage {advantage:+.2f}".replace("-", "−")] if isinstance(advantage, int | float) else []
    said += ["kept" if record["kept"] else "dropped"] if "kept" in record else []
    said[0] = f"wrong, but {said[0]}" if samples.PAID in record else said[0]
    return ", ".join([*said, *(["truncated"] if record.get("truncated") else [])])
