"""Hooks of pytest: tests whose needs are missing are skipped and counted at the end; with --no-skips they are errors."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator

import needs
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "a skipped test is an error unless it needs a GPU or the rights of root (the default where CI is set)"
    parser.addoption(
        "--no-skips", action="store_true", default=os.environ.get("CI", "").lower() not in ("", "0", "false"), help=text
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    names = ["gpu"] if item.get_closest_marker("gpu") else []
    names += [name for mark in item.iter_markers("needs") for name in mark.args]
    if reason := next(filter(None, map(needs.why_skipped, names)), None):
        item.add_marker(pytest.mark.skip(reason=reason))


def note_skip(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config, allowed: bool) -> None:
    """Note why this was skipped, for the summary, and turn it into an error where skips are not allowed."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.skip_reason = reason.removeprefix("Skipped: ")
    if config.getoption("no_skips") and not allowed:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped ({report.skip_reason}), which --no-skips or CI does not allow"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    names = {name for mark in item.iter_markers("needs") for name in mark.args}
    note_skip(report, item.config, allowed=item.get_closest_marker("gpu") is not None or "namespaces" in names)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    note_skip(report, collector.config, allowed=False)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)  # after the other summaries
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    yield
    reports = [report for some in terminalreporter.stats.values() for report in some]
    counts = Counter(report.skip_reason for report in reports if hasattr(report, "skip_reason"))
    if not counts:
        return
    terminalreporter.section("skipped tests", yellow=True)
    for reason, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        terminalreporter.write_line(f"{number:5} {reason}")
    for command in needs.commands(counts):
        terminalreporter.write_line(f"To run them: {command}")
