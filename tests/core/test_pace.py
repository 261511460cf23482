import pytest

from dash_exp.core.pace import Pace


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (None, Pace()),
        (5, Pace(steps=5)),
        ("90s", Pace(seconds=90)),
        ("1.5m", Pace(seconds=90)),
        ("2h", Pace(seconds=7200)),
        ("5%", Pace(share=0.05)),
        ("100%", Pace(share=1)),
    ],
)
def test_what_is_written(written, read):
    assert Pace.read(written) == read


@pytest.mark.parametrize("written", [0, -1, 1.5, True, "5", "m", "0m", "-5%", "101%", "5 m", "10min", "1e3s", "", [1], "٣m"])
def test_what_says_nothing(written):
    with pytest.raises(ValueError, match="steps"):
        Pace.read(written)


@pytest.mark.parametrize(
    ("pace", "step", "since_s", "spent_s", "next_s", "due"),
    [
        (Pace(), 8, 1000, 0, 0, False),
        (Pace(steps=4), 8, 0, 900, 900, True),
        (Pace(steps=4), 7, 1000, 0, 0, False),
        (Pace(seconds=60), 7, 60, 900, 900, True),
        (Pace(seconds=60), 8, 59, 0, 0, False),
        # 5% of 500 s are 25: 13 + 12
        (Pace(share=0.05), 7, 0, 13, 12, True),
        (Pace(share=0.05), 7, 500, 14, 12, False),
        (Pace(share=0.05), 7, 500, 0, 26, False),
    ],
)
def test_when_it_is_due(pace, step, since_s, spent_s, next_s, due):
    assert pace.due(step, run_s=500, since_s=since_s, spent_s=spent_s, next_s=next_s) == due


@pytest.mark.parametrize(("run_s", "spent_s", "due"), [(599, 0, False), (600, 0, True), (600, 1, False)])
def test_with_a_share_the_first_is_due_after_ten_minutes(run_s, spent_s, due):
    assert Pace(share=0.05).due(7, run_s=run_s, since_s=run_s, spent_s=spent_s, next_s=1000) == due
