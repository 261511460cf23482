"""The generated pages of the documentation are up to date, and every option of conf/ is explained."""

import pytest
from conftest import CONF, ROOT
from generate import GROUPS, PAGES, Conf, pages, read
from writing import prose


def test_the_pages_are_what_conf_sweeps_and_the_metrics_say():
    written = pages()
    for page, text in written.items():
        assert page.read_text(encoding="utf-8") == text, f"{page.relative_to(ROOT)}: run python docs/generate.py"
    assert {page for page in written if page.parent.name == "config"} == {*(PAGES / "config").iterdir()}


def test_every_option_is_explained():
    assert Conf(CONF).unexplained() == []


def test_every_group_and_file_is_described():
    folders = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")} - {"."}
    assert folders == {*GROUPS}
    described = {f"{group}/{file.name}": file.description for group, files in Conf(CONF).files.items() for file in files}
    assert [name for name, description in described.items() if not description] == []


# --- how comments are read ---------------------------------------------------------------------------------------------

MAIN = """# The run.
defaults:
  - _self_
  - sampler: plain
steps: 3 # number of steps
# How often to measure, in steps.
every: 1
limits: # what ends it
  seconds: null
"""
PLAIN = """# Plain sampling.
#
# More of it.
_target_: package.Plain
size: 4 # samples at a time
url: 'a # b' # an address
"""
FAST = """# Fast sampling.
defaults:
  - plain
  - _self_
size: 8
url: c # another address
"""
ALL = """# @package _global_
# Everything at once.
defaults:
  - override /sampler: fast
steps: 30 # a month
sampler:
  size: 9
  new: [1, 2]
"""


@pytest.fixture
def conf(tmp_path):
    for name, text in {"config": MAIN, "sampler/plain": PLAIN, "sampler/fast": FAST, "all/one": ALL}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    return Conf(tmp_path, ["sampler", "all"])


def meanings(conf, file):
    return {option.key: (option.value, conf.meaning(file, option)) for option in file.options}


def test_comments_stand_at_the_end_of_the_line_or_above(conf):
    assert meanings(conf, conf.main) == {
        "steps": ("3", "number of steps"),
        "every": ("1", "How often to measure, in steps."),
        "limits": ("", "what ends it"),
        "limits.seconds": ("null", ""),
    }
    plain = conf.files["sampler"][0]
    assert (plain.name, plain.description) == ("plain", "Plain sampling.\n\nMore of it.")
    assert meanings(conf, plain) == {
        "sampler": ("package.Plain", ""),
        "sampler.size": ("4", "samples at a time"),
        "sampler.url": ("'a # b'", "an address"),
    }


def test_an_option_is_explained_once_and_notes_are_added(conf):
    fast = conf.files["sampler"][1]
    assert meanings(conf, fast) == {
        "sampler.size": ("8", "samples at a time"),
        "sampler.url": ("c", "an address; another address"),
    }
    everything = conf.files["all"][0]
    assert (everything.description, everything.chooses) == ("Everything at once.", ("sampler=fast",))
    assert meanings(conf, everything) == {
        "steps": ("30", "number of steps; a month"),
        "sampler.size": ("9", "samples at a time"),
        "sampler.new": ("[1, 2]", ""),
    }


def test_an_option_without_a_comment_is_named(conf):
    assert conf.unexplained() == ["conf/config.yaml: limits.seconds", "conf/all/one.yaml: sampler.new"]


def test_a_value_that_is_no_single_line_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("# A file.\ntext: |\n  one\n  two\n")
    with pytest.raises(AssertionError, match="several lines"):
        read(tmp_path / "x.yaml", "")


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("null = all; 1 = one", "`null` = all; `1` = one"),
        ("see rollout.max_response_tokens, or add +scale=paper.", "see `rollout.max_response_tokens`, or add `+scale=paper`."),
        ("tags <a> and a*b", "tags \\<a\\> and a\\*b"),
        ("as in `x_y`, e.g. [1,8]", "as in `x_y`, e.g. `[1,8]`"),
        ("K = 3 steps (r - mean_g r)", "K = 3 steps (r - `mean_g` r)"),
    ],
)
def test_names_and_values_become_code(text, markdown):
    assert prose(text) == markdown
