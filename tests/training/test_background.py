import threading

import pytest

from dash_exp.training.background import Background


def test_one_piece_of_work_at_a_time():
    background, go, done = Background("test"), threading.Event(), []

    def first():
        go.wait(60)
        done.append("first")

    background.start(first)
    assert background.busy
    background.check()  # waits for nothing
    threading.Timer(0.05, go.set).start()
    background.start(lambda: done.append(f"second after {done}"))
    background.wait()
    assert not background.busy
    assert done == ["first", "second after ['first']"]


def test_what_fails_is_raised_once():
    background = Background("test")

    def fails():
        raise OSError("no space")

    for at in (background.check, background.wait, lambda: background.start(int)):
        background.start(fails)
        while background.busy:
            pass
        with pytest.raises(OSError, match="no space"):
            at()
        background.wait()


def test_what_interrupts_the_wait_leaves_the_work_going_on(monkeypatch):
    background, go, done = Background("test"), threading.Event(), []

    def work():
        go.wait(60)
        done.append(1)

    background.start(work)
    with monkeypatch.context() as patch:

        def interrupted(*_):
            raise KeyboardInterrupt

        patch.setattr(background._last, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            background.wait()
    assert background.busy and not done
    go.set()
    background.wait()
    assert done == [1]
