import stat

import pytest

from dash_exp.core.errors import UserError
from dash_exp.rewards import bubblewrap as command_line
from dash_exp.rewards.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def test_without_bubblewrap_the_message_says_what_to_install(path):
    with pytest.raises(UserError) as error:
        Sandbox()
    assert "bubblewrap is not installed" in str(error.value)
    assert "apt install bubblewrap" in str(error.value)
    assert "reward.isolation=process" in str(error.value)


def test_a_bubblewrap_that_may_not_make_namespaces(path):
    fake = path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(UserError, match=r"cannot start a sandbox here \(bwrap: No permissions to create new namespace\)"):
        Sandbox()


def test_libraries_under_tmp_are_found_all_the_same(bubblewrap, monkeypatch, tmp_path):
    """As in an environment that somebody created there. The program's own /tmp covers the machine's."""
    tmp_path.chmod(0o755)
    (tmp_path / "library.py").write_text("def same(a, b): return a == b\n")
    monkeypatch.setattr(command_line, "site_folders", lambda: [str(tmp_path)])
    command_line.command.cache_clear()
    try:
        box = Sandbox(timeout_s=20)
        test = "import library\nassert library.same(f(1), 1)"
        assert box.grade("import library\ndef f(x): return x", (test,)).status == "passed"
    finally:
        command_line.command.cache_clear()
