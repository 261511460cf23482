"""The page of a sweep that runs, in a browser: it changes by itself, and everything on it shows."""

import pytest
from playwright.sync_api import Page, expect
from running_sweep import CELLS, RunningSweep

from dash_exp import report
from dash_exp.results.cells import load


@pytest.fixture
def running(tmp_path):
    """A cell in each state."""
    sweep = RunningSweep(tmp_path / "sweep", every_s=1)
    sweep.done("grpo", 0)
    sweep.done("dash", 0, status="failed", result={"error": "RuntimeError: no cheese"})
    sweep.runs("grpo", 1, steps=2)
    sweep.renewed()
    return sweep


def fact(page: Page, label: str):
    """A number at the top of the page."""
    return page.locator(".facts div", has=page.get_by_text(label, exact=True)).locator("dd")


def test_the_numbers_change_without_a_reload_by_hand(browser, no_drawing, running):
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: None if request.url.startswith("data:") else asked.append(request.url))
    file = running.folder / "report" / "report.html"
    page.goto(file.as_uri())
    expect(fact(page, "cells done")).to_have_text("1 of 4")

    running.done("grpo", 1)
    running.runs("dash", 1, steps=1)
    running.renewed()
    expect(fact(page, "cells done")).to_have_text("2 of 4", timeout=15_000)
    expect(page.locator("#cells td.number").first).to_contain_text("1 of 3")

    for algo, seed in CELLS:
        running.done(algo, seed)
    assert running.page.renew()
    report.write(load([running.folder]), running.folder / "report")
    expect(fact(page, "cells done")).to_have_text("4 of 4", timeout=15_000)
    expect(page.locator("meta[http-equiv=refresh]")).to_have_count(0)
    assert set(asked) == {file.as_uri()}  # the page itself, again and again, and nothing else
    page.close()


@pytest.mark.parametrize("width", [1366, 390], ids=["laptop", "phone"])
def test_everything_shows(browser, running, width):
    running.page.leave()  # so that it holds still
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((running.folder / "report" / "report.html").as_uri())
    for label, text in {"cells done": "1 of 4", "running": "1", "failed": "1", "left": "1"}.items():
        expect(fact(page, label)).to_have_text(text)
    expect(page.locator("#failed li")).to_have_text("dash, seed 0: RuntimeError: no cheese")
    shown = page.locator("h2").all_inner_texts()
    assert shown == [
        "What failed", "Verdicts on the claims", "Training curves", "Summary", "Accuracy and cost of each arm", "Cells"
    ]  # fmt: skip
    bars = page.locator("progress").evaluate_all("bars => bars.map(bar => [bar.value, bar.getClientRects().length])")
    assert bars == [[pytest.approx(2 / 3), 1], [1, 1], [1, 1]]  # running, failed, done; the one that waits has none
    assert page.locator("#curves img:visible").count() == 8
    for picture in page.locator("img:visible").all():
        assert picture.evaluate("image => image.complete && image.naturalWidth") > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
