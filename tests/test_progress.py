from dash_exp.progress import describe, duration


def test_duration():
    assert [duration(s) for s in (0, 75, 3700)] == ["0:00", "1:15", "1:01:40"]


def test_a_step_in_a_line():
    row = {"reward/mean": 0.5, "filter/kept_fraction": 0.25, "tokens/sampled": 3000}
    row |= {"time/sample_s": 1.0, "time/score_s": 0.25, "time/update_s": 0.25, "time/sync_s": 0.0, "time/eval_s": 9.0}
    # 3,000 tokens in 1.5 s, evaluation left out
    assert describe(row, {"in_dist": 0.4, "out_dist": 0.1}) == "reward 0.500  accuracy 40%/10%  kept 25%  2,000 tok/s"
