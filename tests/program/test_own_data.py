"""A run on files as users have them, with a reward that reads further fields."""

import json

import pandas
from conftest import NANO_MODEL, composed

from dash_exp.commands import run
from dash_exp.rewards.base import Scores


def by_source(problems, texts):
    """1 on problems of one source."""
    return Scores([float(p.extra["data_source"] == "good" and p.extra["extra_info"]["index"] < 20) for p in problems])


def test_a_run_on_files_made_for_verl(tmp_path, capsys):
    def row(i, split):
        return {
            "data_source": ["good", "other"][i % 2],
            "prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": f"{i}+1="}],
            "reward_model": {"style": "rule", "ground_truth": str(i + 1)},
            "extra_info": {"index": i, "split": split},
        }

    for split, numbers in {"train": range(10), "test": range(8, 12)}.items():
        pandas.DataFrame([row(i, split) for i in numbers]).to_parquet(tmp_path / f"{split}.parquet")
    small = ["model=tiny_random", *NANO_MODEL, "logger=csv", "steps=1", "batch.prompts=8", "batch.group_size=2"]
    cfg = composed("data=verl", f"data.path={tmp_path}", *small, "filter=none", "rollout.max_response_tokens=4")
    cfg.reward = {"_target_": f"{__name__}.by_source", "_partial_": True}
    result = run.run(cfg, tmp_path / "run")
    assert result["sizes/train_problems"] == 8
    assert "8 to train on (2 that are in a test set left out); tests: 4 in_dist" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "run/completions/step_00001.jsonl").read_text().splitlines()]
    assert {row["reward"] for row in rows if int(row["answer"]) % 2} == {1.0}  # 0+1= is of the good source
    assert {row["reward"] for row in rows if not int(row["answer"]) % 2} == {0.0}
