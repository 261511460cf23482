import json

import pytest

from dash_exp.results.run_folder import as_earlier, overrides_by_key, same_numbers, write_result


def test_result_is_replaced_whole(tmp_path):
    result = {"status": "done", "accuracy/in_dist/final": 0.9}
    write_result(tmp_path, {"status": "failed"})
    write_result(tmp_path, result)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("overrides", "by_key"),
    [
        (["algo=dash", "+scale=paper"], {"algo": "dash", "scale": "paper"}),
        (["kl='0.04'", "reward.pattern=a=b"], {"kl": "0.04", "reward.pattern": "a=b"}),
        (["~data.tests.out_dist"], {"data.tests.out_dist": ""}),
    ],
)
def test_overrides_by_key(overrides, by_key):
    assert overrides_by_key(overrides) == by_key


def test_where_sampling_servers_are_changes_no_number():
    """A run resumes with other ones, and a done cell is the same with other ones."""
    here = {"rollout": {"sampler": {"_target_": "x", "servers": ["http://a"], "server_nodes": 0, "gpus_per_server": 1}}}
    there = {"rollout": {"sampler": {"_target_": "x", "servers": None, "server_nodes": 2, "gpus_per_server": 4}}}
    earlier = {"rollout": {"sampler": {"_target_": "x", "servers": ["http://b"]}}}
    for same in (same_numbers, as_earlier):
        assert same(here) == same(there) == same(earlier)
        assert same(here) != same({"rollout": {"sampler": {"_target_": "y"}}})
    assert here["rollout"]["sampler"]["server_nodes"] == 0
