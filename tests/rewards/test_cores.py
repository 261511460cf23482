import pytest

from dash_exp.rewards import cores


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        (None, 6),  # no control group
        ("max 100000\n", 6),
        ("250000 100000\n", 2),  # 2.5 cores
        ("20000 100000\n", 1),
        ("1600000 100000\n", 6),
    ],
)
def test_the_cores_of_a_container(limit, found, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(cores, "CGROUP", tmp_path / "cpu.max")
    if limit:
        (tmp_path / "cpu.max").write_text(limit)
    assert cores.cores() == found


@pytest.mark.parametrize(("there", "ranks", "workers"), [(1, 1, 1), (8, 1, 8), (8, 3, 2), (2, 4, 1), (64, 1, 16), (64, 8, 8)])
def test_ranks_share_the_cores(there, ranks, workers, monkeypatch):
    monkeypatch.setattr(cores, "cores", lambda: there)
    assert cores.workers_for(ranks) == workers
