"""Tasks beside the callers: who waits is told of changes, and of the end."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from dash_exp.core.background import Background


def test_who_waits_is_told():
    inside, seen = Background("things"), []

    async def change():
        seen.append(1)
        inside.notify()

    async def wait():
        await inside.until(lambda: seen)
        return len(seen)

    inside.run(inside.until(lambda: False, within_s=0.01))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(inside.run, wait())
        inside.run(change())
        assert waiting.result(30) == 1
        waiting = pool.submit(inside.run, inside.until(lambda: False))
        inside.run(wait())
        inside.close(within_s=30)
        with pytest.raises(RuntimeError, match="the things were closed"):
            waiting.result(30)
    with pytest.raises(RuntimeError, match="the things were closed"):
        inside.run(wait())


def test_one_that_was_never_used_can_be_closed():
    Background("things").close(within_s=30)
