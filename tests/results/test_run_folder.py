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


def test_where_servers_are_changes_no_number():
    """A run may resume on other servers, or on its own; one of an earlier version has no such choice."""
    engine = {"_target_": "x.VLLMServerSampler", "max_sequences": 8, "eager": False}
    earlier = {"servers": ["http://a:1"], "memory_share": 0.9, "transfer": "auto", "weights_dir": None}
    own = {"servers": None, "colocate": True, "memory_share": 0.4, "transfer": "folder", "weights_dir": "/disk"}
    of_job = {"servers": None, "colocate": False, "server_nodes": 2, "gpus_per_server": 4}
    runs = [{"rollout": {"staleness": 0, "sampler": engine | places}} for places in (earlier, own, of_job)]
    for same in (as_earlier, same_numbers):
        assert same(runs[0]) == same(runs[1]) == same(runs[2])
    other = {"rollout": {"staleness": 0, "sampler": engine | own | {"max_sequences": 9}}}
    assert same_numbers(other) != same_numbers(runs[1])
    inside = [{"rollout": {"sampler": {"_target_": "x.VLLMSampler", "memory_share": share}}} for share in (0.4, 0.5)]
    assert same_numbers(inside[0]) != same_numbers(inside[1])
    assert runs[2]["rollout"]["sampler"]["server_nodes"] == 2
