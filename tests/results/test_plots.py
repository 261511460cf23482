from dash_exp.core.metrics import PHASES
from dash_exp.results.plots import plot_curves


def test_curves_are_drawn_also_of_a_run_without_out_of_distribution_tests(tmp_path):
    rows = [{"time/elapsed_s": float(t), "reward/mean": t / 10, "accuracy/in_dist": t / 5 if t % 2 else None} for t in range(5)]
    plot_curves(rows, dict.fromkeys(PHASES, 1.0), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000
