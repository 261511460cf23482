"""The problems of a run, from files as users have them."""

import pandas
import pytest
from conftest import composed
from json_lines import write
from omegaconf import OmegaConf

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


IN, OUT = "data.tests.in_dist", "data.tests.out_dist"


@pytest.mark.parametrize(
    ("data", "key", "path", "split"),
    [  # the settings that give the path and the split of a data set
        ("data=jsonl data.path={}", "data.train", "data.path", "data.train_split"),
        ("data=jsonl data.path={}", IN, "data.test_path", "data.test_split"),
        ("data=verl data.path={}", IN, "data.test_path", "data.test_split"),
        ("data=gsm8k data.path={}", IN, "data.path", f"{IN}.split"),
        ("data=math data.path={}", "data.train", "data.path", "data.train.split"),
        ("data=math data.path={}", IN, "data.path", f"{IN}.split"),
        ("data=math data.math500_path={}", IN, "data.math500_path", f"{IN}.split"),
        ("data=math data.gsm8k_path={}", OUT, "data.gsm8k_path", f"{OUT}.split"),
        (f"+test@{MORE}=gsm8k {MORE}.path={{}}", MORE, f"{MORE}.path", f"{MORE}.split"),
    ],
)
def test_a_missing_file_is_told_by_the_settings_that_say_where_it_is(data, key, path, split, tmp_path):
    cfg = composed(*data.format(tmp_path).split())
    with pytest.raises(UserError) as error:
        data_set(cfg, key)
    said = str(error.value)
    assert said.startswith(f"{path}={tmp_path}: there is no file {tmp_path}/")
    assert f" {split}=NAME, " in said
    assert f"\"{split}='train[:100]'\"" in said
    test = "data.tests.NAME" if key == "data.train" else key
    assert f"{test}.path=FILE" in said


@pytest.mark.needs("gym")
def test_an_option_of_a_task_is_named_where_it_is_given():
    for key, options in (("data.train", "data.options"), (MORE, f"{MORE}.options")):
        cfg = composed("data=reasoning_gym", "data.task=chain_sum", f"+test@{MORE}=reasoning_gym", f"{MORE}.task=gcd")
        OmegaConf.update(cfg, options, 3)
        with pytest.raises(UserError, match=rf"^{options}=3: has no names\. Write {options}\.NAME=VALUE"):
            data_set(cfg, key)


def test_columns_that_files_for_verl_need_not_have(tmp_path):
    pandas.DataFrame([VERL | {"data_source": "mine"}]).to_parquet(tmp_path / "train.parquet")
    cfg = ["data=verl", f"data.path={tmp_path}"]
    assert data_set(composed(*cfg), "data.train")[0].extra == {"data_source": "mine", "extra_info": None}
    with pytest.raises(UserError, match="has no field 'none'"):
        data_set(composed(*cfg, "data.extra=[none]"), "data.train")
