"""A run that broke goes on from its last snapshot, and its numbers are those of a run left alone."""

import pandas.testing
import pytest
from conftest import SMALL, composed

from dash_exp import results, run
from dash_exp.module import PolicyModule


class PowerCutError(Exception):
    pass


def broken_after(folder, cfg, step, monkeypatch):
    """A run that ends without a word of its own in the outer step after `step`."""
    with monkeypatch.context() as patch:
        finish_row = PolicyModule.finish_row

        def breaks(module):
            if module.current_epoch == step:
                raise PowerCutError
            return finish_row(module)

        patch.setattr(PolicyModule, "finish_row", breaks)
        with pytest.raises(PowerCutError):
            run.run(cfg, folder)


def same(folder, other):
    """Metrics and result of two runs, times aside."""
    a, b = results.load_cell(folder), results.load_cell(other)
    columns = [c for c in a.metrics if not c.startswith("time/") and c != "seconds"]
    pandas.testing.assert_frame_equal(a.metrics[columns], b.metrics[columns], check_exact=True)
    pandas.testing.assert_frame_equal(a.problems, b.problems)
    assert {k: v for k, v in a.result.items() if "time/" not in k} == {k: v for k, v in b.result.items() if "time/" not in k}


@pytest.mark.parametrize(
    "overrides",
    [
        "algo=ppo_mini batch.minibatches=4",
        "algo=sft_h",
        "algo=no_gf filter=zero_variance kl=adaptive",
        "algo=dash budget.sampled_tokens=4000",
    ],
)
def test_it_goes_on_as_if_nothing_had_been(overrides, tmp_path, monkeypatch):
    cfg = composed(*SMALL, "steps=6", "resume_every=2", "eval.every=3", *overrides.split())
    run.run(cfg, tmp_path / "alone")
    broken_after(tmp_path / "broken", cfg, 3, monkeypatch)
    assert (tmp_path / "broken" / "checkpoints" / "resume.pt").is_file()
    run.run(cfg, tmp_path / "broken")
    same(tmp_path / "broken", tmp_path / "alone")
    assert not (tmp_path / "broken" / "checkpoints" / "resume.pt").exists()


def test_it_says_where_it_goes_on(tmp_path, monkeypatch, capsys):
    cfg = composed(*SMALL, "steps=4", "resume_every=2", "eval.every=4")
    broken_after(tmp_path, cfg, 3, monkeypatch)
    run.run(cfg, tmp_path)
    assert "goes on after outer step 2" in capsys.readouterr().out


def test_a_torn_snapshot_and_one_of_other_settings_are_not_gone_on_from(tmp_path, monkeypatch, capsys):
    cfg = composed(*SMALL, "steps=4", "resume_every=2", "eval.every=4")
    broken_after(tmp_path, cfg, 3, monkeypatch)
    snapshot = tmp_path / "checkpoints" / "resume.pt"
    whole = snapshot.read_bytes()
    run.run(composed(*SMALL, "steps=4", "resume_every=2", "eval.every=4", "seed=1"), tmp_path)
    snapshot.write_bytes(whole[: len(whole) // 2])
    run.run(cfg, tmp_path)
    assert "goes on after" not in capsys.readouterr().out
    assert results.load_cell(tmp_path).metrics["step"].tolist() == [0, 1, 2, 3, 4]
