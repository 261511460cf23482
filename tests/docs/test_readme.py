"""README is one page, and what it links to is there."""

import re

import pytest
from conftest import ROOT

PAGES = ["README.md", "CONTRIBUTING.md"]


def test_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def anchors(markdown: str) -> set[str]:
    """What can stand behind # in a link to this text: its headings in small letters with - for spaces."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http://", "https://"))]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = ROOT / (path or page)
        assert target.exists(), f"{page} links to {path}, which is not there"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {path} has no heading {anchor}"


def test_anchors_are_those_of_headings():
    assert anchors("# A page\n\n## Where your files go\n```\n# no heading\n```\n### `k=1`, or not?\n") == {
        "a-page",
        "where-your-files-go",
        "k1-or-not",
    }
