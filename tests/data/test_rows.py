"""What every reader of rows refuses, seen through the loader of GSM8K."""

from datetime import date
from decimal import Decimal

import pytest
from json_lines import write

from dash_exp.core.errors import UserError
from dash_exp.data import gsm8k, jsonl, rows

ROW = {"question": "Two and two?", "answer": "2+2 is <<2+2=4>>4.\n#### 1,004"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, {"question": "x"}], r"train\.jsonl, line 2: has no field 'answer'"),
        ([{"question": "x", "answer": "no mark"}], r"line 1, field answer: has no '#### number'"),
        ([{"question": " ", "answer": "#### 1"}], r"line 1, field question: is ' '"),
        ([{"question": None, "answer": "#### 1"}], r"line 1, field question: is None"),
        ([ROW, "{cut off"], r"line 2: is not valid JSON"),
        (["[1, 2]"], r"line 1: is not a JSON object"),
        ([""], r"its train split is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        gsm8k.load(write(tmp_path / "d", rows), "train")


def test_ids_must_be_unique(tmp_path):
    path = write(tmp_path / "d", [{"id": "x", "p": "1", "a": "1"}, {"id": "x", "p": "2", "a": "2"}])
    with pytest.raises(
        UserError, match=r"line 2: has the id 'x' of .*line 1\. Give each row its own id, or write data\.id=null"
    ):
        jsonl.load(path, "train", prompt="p", answer="a")
    assert [p.id for p in jsonl.load(path, "train", prompt="p", answer="a", id=None)] == ["train/1", "train/2"]


def test_a_hub_that_cannot_be_reached_is_a_message(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the tries, where there is no network
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="could not be loaded from the hub"):
        gsm8k.load("nobody/nothing-of-that-name", "train")


def test_what_a_field_may_hold():
    for number, text in (
        (3, "3"),
        (2.5, "2.5"),
        (1e-05, "0.00001"),
        (1e22, "10000000000000000000000"),
        (-3.0, "-3"),
        (Decimal("1E+2"), "100"),
    ):
        assert rows.text_of({"a": number}, "a", "here") == text
    assert rows.id_of({"id": 7}, "id", "train/1", "here") == "7"
    assert [rows.id_of(row, "id", "train/1", "here") for row in ({}, {"id": None}, {"id": ""})] == ["train/1"] * 3
    assert [rows.texts(row, "a", "here") for row in ({}, {"a": None}, {"a": ["x"]})] == [[], [], ["x"]]
    for value in (True, float("nan"), Decimal("NaN"), float("-inf"), "", [], {}, date(2020, 1, 1), b"1", "\0", "\ud800"):
        with pytest.raises(UserError, match=r"^here, field a: "):
            rows.text_of({"a": value}, "a", "here")
    for value in ("x", [1], ["\0"]):
        with pytest.raises(UserError, match=r"^here, field a: "):
            rows.texts({"a": value}, "a", "here")


def test_rows_without_an_answer_are_left_out(tmp_path, caplog):
    path = write(tmp_path / "d", [{"p": "1", "a": ""}, {"p": "2", "a": None}, {"p": "3", "a": 0.00001}])
    assert [p.answer for p in jsonl.load(path, "train", prompt="p", answer="a")] == ["0.00001"]
    assert "rows without an answer are left out, 2 of the train split: train/1, train/2" in caplog.text
    assert len(gsm8k.load(write(tmp_path / "e", [ROW, {"question": "x", "answer": "no mark"}]), "train")) == 1
    with pytest.raises(UserError, match="line 1, field answer: has no '#### number'"):
        gsm8k.load(write(tmp_path / "f", [{"question": "x", "answer": "no mark"}]), "train")


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ("model.gold", "4"),
        ("model.list.1", "b"),
        ("a.b", "whole"),  # the name of a column comes first
        ("model.none", r"^here, field model: has no field 'none'\. Its fields are 'gold', 'list'\."),
        ("none.gold", r"^here: has no field 'none'"),
        ("text.gold", r"^here, field text: is 'x' and has no field 'gold'"),
        ("model.list.2", r"^here, field model\.list: is \['a', 'b'\] and has no field '2'"),
        ("model", r"^here, field model: is \{.*\}\. Name a field inside it, as model\.gold"),
    ],
)
def test_a_field_inside_another(field, found):
    row = {"model": {"gold": 4, "list": ["a", "b"]}, "text": "x", "a.b": "whole", "a": {"b": "part"}}
    if not found.startswith("^"):
        assert rows.text_of(row, field, "here") == found
        return
    with pytest.raises(UserError, match=found):
        rows.text_of(row, field, "here")
