import time

import pytest

from dash_exp.core.metrics import FAMILIES, METRICS, Clock, MetricsFile, check_declared, read_metrics


def test_every_metric_has_a_unit_and_a_meaning():
    assert all(m.unit and m.meaning for m in [*METRICS.values(), *FAMILIES.values()])


def test_rows_come_back_as_written(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.append({"step": 0, "accuracy/in_dist": 0.25})
    file.append({"step": 1, "reward/mean": 0.1 + 0.2, "kl/ref_nats_per_token": None})
    rows = read_metrics(tmp_path / "metrics.csv")
    assert list(rows[0]) == list(METRICS)
    assert rows[0]["accuracy/in_dist"] == 0.25
    assert rows[1]["reward/mean"] == 0.1 + 0.2
    assert rows[1]["kl/ref_nats_per_token"] is None


def test_undeclared_metrics_are_refused(tmp_path):
    with pytest.raises(KeyError, match="reward/men"):
        MetricsFile(tmp_path / "metrics.csv").append({"reward/men": 1})


def test_test_sets_and_parts_of_rewards_get_columns(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv", ["accuracy/in_dist", "accuracy/math500", "reward/format"])
    file.append({"accuracy/math500": 0.5, "reward/format": 1.0})
    (row,) = read_metrics(tmp_path / "metrics.csv")
    assert list(row) == [*METRICS, "accuracy/math500", "reward/format"]
    assert (row["accuracy/math500"], row["reward/format"]) == (0.5, 1.0)
    check_declared(row)
    with pytest.raises(KeyError, match="acuracy/math500"):
        check_declared({"acuracy/math500": 0.5})


def test_the_clock_tells_how_long_a_side_waited(monkeypatch):
    """Update 1 s, evaluation 10 s, sampling 2 s and 3 s more of something else: the update waited 5 s, then sampling 4 s."""
    now = [0.0]
    monkeypatch.setattr(Clock, "_now", lambda self: now[0])
    clock = Clock()
    for phase, seconds in (("update", 1), ("eval", 10), ("sample", 2), ("other", 3), ("update", 1), ("sample", 1)):
        if phase == "other":
            now[0] += seconds
            continue
        with clock(phase):
            now[0] += seconds
    assert clock.idle == {"update": 5, "sample": 4}
    assert clock.seconds["update"] == 2


def test_training_is_all_between_its_start_and_now_but_evaluation_and_what_is_apart(monkeypatch):
    """The base model is evaluated and saved before: neither is part of it, or taken from it."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock()

    def work(evaluation, apart, training):
        with clock("eval"):
            now[0] += evaluation
        with clock.apart():
            now[0] += apart
        now[0] += training

    work(3, 2, 1)
    assert clock.training_s == 0
    clock.start_training()
    work(30, 20, 10)
    assert clock.training_s == 10
    resumed = Clock()
    resumed.restore(clock.state())
    with resumed.apart():
        now[0] += 5
    resumed.start_training()
    now[0] += 1
    assert resumed.training_s == 11


def test_clock_adds_up_phases_even_when_they_fail():
    clock = Clock()
    with clock("sample"):
        time.sleep(0.01)
    with pytest.raises(ValueError), clock("sample"):
        time.sleep(0.01)
        raise ValueError
    assert clock.seconds["sample"] >= 0.02
    assert clock.seconds["update"] == 0


def test_the_time_of_a_snapshot_is_in_the_next_row_once():
    clock = Clock()
    clock.snapshot["snapshot"] += 2
    assert clock.new_snapshot_s() == {"snapshot": 2, "snapshot_beside": 0}
    clock.snapshot["snapshot_beside"] += 3
    resumed = Clock()
    resumed.restore(clock.state())
    assert resumed.snapshot == {"snapshot": 2, "snapshot_beside": 3}
    assert resumed.new_snapshot_s() == {"snapshot": 0, "snapshot_beside": 0}  # rows before have it
    assert clock.new_snapshot_s() == {"snapshot": 0, "snapshot_beside": 3}
    before = {k: v for k, v in clock.state().items() if k != "snapshot"}  # of a version that did not count it
    resumed.restore(before)
