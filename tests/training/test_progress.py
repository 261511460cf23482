from dash_exp.training.progress import describe, duration


def test_duration():
    assert [duration(s) for s in (0, 75, 3700)] == ["0:00", "1:15", "1:01:40"]


def test_a_step_in_a_line():
    row = {"reward/mean": 0.5, "filter/kept_fraction": 0.25, "tokens/sampled": 3000}
    assert describe(row, {"in_dist": 0.4, "out_dist": 0.1}, 1.5) == "reward 0.500  accuracy 40%/10%  kept 25%  2,000 tok/s"
