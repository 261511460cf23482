"""Fixtures of the report's tests."""

import needs
import pytest
from synthetic import write_cell

from dash_exp.report import figures


@pytest.fixture
def no_drawing(monkeypatch):
    """Figures are laid out but saved as an empty picture: drawing takes most of the time."""
    monkeypatch.setattr(figures, "save", lambda figure, path: path.with_name(f"{path.name}.svg").write_text("<svg/>"))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright  # only for the tests that open a page

    needs.require("browser")
    program = needs.browser_program()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def sweep(tmp_path):
    """grpo solves 3 of 4 problems with every seed. dash solves the same, all 4 with seeds 1 and 2, in half of the time."""
    study = {"question": "Which?", "baseline": ["algo=grpo"], "target": None, "paper": None}
    for seed in range(3):
        write_cell(tmp_path / f"algo=grpo,seed={seed}", ["algo=grpo", f"seed={seed}"], settings={"study": study})
        write_cell(
            tmp_path / f"algo=dash,seed={seed}",
            ["algo=dash", f"seed={seed}"],
            in_dist=(1, 1, 1, int(seed > 0)),
            seconds=50.0,
            settings={"study": study},
        )
    return tmp_path
