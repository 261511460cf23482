"""The problems of a run, from files as users have them."""

import pandas
import pytest
from conftest import composed
from json_lines import write

from dash_exp.commands.data_sets import data_set
from dash_exp.core.errors import UserError

MORE = "data.tests.more"
VERL = {"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": "2", "style": "rule"}}


def more(*overrides):
    cfg = composed(f"+test@{MORE}=jsonl", *(f"{MORE}.{override}" for override in overrides))
    return data_set(cfg, MORE)


def test_a_test_set_from_a_file_of_ones_own(tmp_path):
    row = {"q": "1+1?", "gold": "2"}
    write(tmp_path, [row], "test.jsonl")
    pandas.DataFrame([row]).to_csv(tmp_path / "rows.csv", index=False)
    pandas.DataFrame([row]).to_parquet(tmp_path / "rows.parquet")
    for path in (tmp_path, tmp_path / "test.jsonl", tmp_path / "rows.csv", tmp_path / "rows.parquet"):
        (problem,) = more(f"path={path}", "prompt=q", "answer=gold", "extra=[gold]")
        assert (problem.id, problem.prompt, problem.answer, problem.extra) == ("test/1", "1+1?", "2", {"gold": "2"})
    pandas.DataFrame([VERL]).to_parquet(tmp_path / "verl.parquet")
    (problem,) = more(f"path={tmp_path}/verl.parquet", "answer=reward_model.ground_truth")
    assert (problem.messages, problem.answer) == ((("user", "1+1?"),), "2")


def test_messages_name_the_settings_of_the_test_set(tmp_path):
    write(tmp_path, [{"id": "a", "q": "x"}] * 2)
    for overrides, message in (
        (["split=train"], f"settings such as {MORE}.prompt=id say which are read"),
        (["split=train", "prompt=q"], f"write {MORE}.answer=null"),
        (["split=train", "prompt=q", "answer=null"], f"write {MORE}.id=null"),
        ([], f"{MORE}.path={tmp_path}: there is no file {tmp_path}/test.jsonl"),
        ([], f"{MORE}.path=FILE"),
        ([], f"\"{MORE}.split='train[:100]'\""),
    ):
        with pytest.raises(UserError) as error:
            more(f"path={tmp_path}", *overrides)
        assert message in str(error.value)
    with pytest.raises(UserError, match=rf"^data\.path={tmp_path}: .*data\.test_path=FILE"):
        data_set(composed("data=jsonl", f"data.path={tmp_path}"), "data.tests.in_dist")


def test_columns_that_files_for_verl_need_not_have(tmp_path):
    pandas.DataFrame([VERL | {"data_source": "mine"}]).to_parquet(tmp_path / "train.parquet")
    cfg = ["data=verl", f"data.path={tmp_path}"]
    assert data_set(composed(*cfg), "data.train")[0].extra == {"data_source": "mine", "extra_info": None}
    with pytest.raises(UserError, match="has no field 'none'"):
        data_set(composed(*cfg, "data.extra=[none]"), "data.train")
