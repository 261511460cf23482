"""The page in a browser: everything shows, at a laptop's width and a phone's, and nothing is fetched."""

import json

import pytest
from playwright.sync_api import Browser, Page
from synthetic import write_cell

from dash_exp import report
from dash_exp.results.cells import AXES, load

WIDTHS = {"laptop": 1366, "phone": 390}
HOSTILE = "</pre><script>document.title = 'taken'</script><img src=http://example.com/x.png onerror=alert(1)>" + "long" * 300


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report with all of its sections: three seeds, pass@k, the paper, a hostile completion, and a cell that waits."""
    sweep = tmp_path_factory.mktemp("sweep")
    study = {"question": "Which?", "baseline": ["algo=grpo"], "target": None}
    study["paper"] = {"table": 3, "data": "math", "methods": {"grpo": "GRPO", "dash": "DASH"}}
    for algo in ("grpo", "dash"):
        for seed in range(2):
            found = {f"eval/in_dist/pass@{k}/{w}": 0.1 * k + 0.01 * seed for k in (1, 8) for w in ("base", "final")}
            write_cell(
                sweep / f"algo={algo},seed={seed}",
                [f"algo={algo}", f"seed={seed}"],
                in_dist=(1, 1, 1, seed),
                result=found,
                settings={"study": study, "name": "a_sweep_with_a_name_that_goes_on_and_on_and_on_and_on"},
                completion=HOSTILE,
            )
    cells = [{"folder": p.name, "overrides": []} for p in sorted(sweep.iterdir())]
    cells.append({"folder": "late", "overrides": ["algo=a_name_that_is_quite_long_and_then_some", "seed=0"]})
    (sweep / "sweep.json").write_text(json.dumps({"cells": cells}))
    return report.write(load([sweep]), sweep / "report")


def opened(browser: Browser, file, width: int) -> tuple[Page, list[str]]:
    """The page, and what went wrong or was asked of others while it opened."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("request", lambda request: None if request.url.startswith("data:") else wrong.append(request.url))
    page.goto(file.as_uri())
    return page, wrong


@pytest.mark.parametrize("device", WIDTHS)
def test_everything_shows(browser, page_file, device):
    width = WIDTHS[device]
    page, wrong = opened(browser, page_file, width)
    assert wrong == [page_file.as_uri()]  # the page itself is all that was asked for
    assert page.title() == "a_sweep_with_a_name_that_goes_on_and_on_and_on_and_on – comparison"  # no script has run
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for picture in page.locator("img:visible").all():
        box = picture.bounding_box()
        assert picture.evaluate("image => image.complete && image.naturalWidth") > 0
        assert box["width"] > 200 and box["height"] > 100
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert len(picture.get_attribute("alt")) > 20
    for table in page.locator(".wide").all():
        box = table.bounding_box()
        assert box["height"] > 40
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        table.evaluate("element => { element.scrollLeft = element.scrollWidth }")  # what is wider scrolls inside
        last = table.locator("thead th").last.bounding_box()
        assert last["x"] + last["width"] <= width
    hidden = "elements => elements.filter(e => !e.getClientRects().length).map(e => e.outerHTML)"
    assert page.locator("h1, h2, p, li, pre, td, dd").evaluate_all(hidden) == []
    shown = page.locator("h2").all_inner_texts()
    assert shown == [
        "Summary", "Accuracy and cost of each arm", "Differences from grpo", "Time to a target accuracy", "Time by phase",
        "Training curves", "pass@k before and after training", "Comparison with the paper",
        "Settings that differ between the arms", "Sample completions", "Cells that are not done",
    ]  # fmt: skip
    page.close()


@pytest.mark.parametrize("device", WIDTHS)
def test_each_axis_has_its_figures(browser, page_file, device):
    page, wrong = opened(browser, page_file, WIDTHS[device])
    seen = set()
    for number, label in enumerate(AXES.values(), 1):
        page.get_by_text(label, exact=True).locator("visible=true").and_(page.locator("label")).click()
        assert page.locator(".tab:visible").count() == 1
        figures = page.locator(f".tab-{number} img")
        assert figures.count() == 8  # two accuracies, reward, length, |advantage|, kept, KL, gradient
        for i in range(8):
            assert figures.nth(i).is_visible()
            assert f"against {label}" in figures.nth(i).get_attribute("alt")
            seen.add(figures.nth(i).get_attribute("src"))
    assert len(seen) == 8 * len(AXES)
    assert len(wrong) == 1
    page.close()


def test_the_tabs_work_by_keyboard(browser, page_file):
    page, _ = opened(browser, page_file, 1366)
    page.locator("#axis-1").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".tab-2").is_visible() and not page.locator(".tab-1").is_visible()
    page.close()


def test_the_figures_are_also_files(page_file):
    folder = page_file.parent / "figures"
    names = {path.stem for path in folder.iterdir()}
    assert {path.stem for path in folder.glob("*.png")} == {path.stem for path in folder.glob("*.svg")} == names
    markdown = (page_file.parent / "report.md").read_text()
    linked = {part.partition(".svg")[0] for part in markdown.split("](figures/")[1:]}
    assert linked <= names
    assert "curve-seconds-accuracy-in_dist" in linked
    left_out = names - linked  # the Markdown has of the other axes the first figure alone
    assert left_out and not [name for name in left_out if not name.startswith("curve-") or name.startswith("curve-steps-")]
