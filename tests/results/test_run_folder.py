import json

import pytest

from dash_exp.results.run_folder import overrides_by_key, write_result


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
