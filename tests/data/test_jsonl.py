"""Own data: fields of any names, conversations as TRL has them, the columns of verl."""

import json

import pandas
import pyarrow.parquet
import pytest
from json_lines import write

from dash_exp.core.errors import UserError
from dash_exp.data import jsonl

USER = {"role": "user", "content": "1+1?"}
SYSTEM = {"role": "system", "content": ""}
REPLY = {"role": "assistant", "content": "It is 2."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
PARTS = {"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}


def loaded(folder, *rows, prompt="prompt", answer="answer", **fields):
    return jsonl.load(write(folder / "d", rows), "train", prompt=prompt, answer=answer, **fields)


def test_fields_of_ones_own(tmp_path):
    row = {"q": "1+1", "gold": 2, "why": "count", "about": {"level": 3, "tags": ["a"]}, "id": "7", "key": "k"}
    names = {"prompt": "q", "answer": "gold", "solution": "why"}
    (problem,) = loaded(tmp_path, row, **names, extra=["about", "about.level"])
    assert (problem.prompt, problem.answer, problem.solution, problem.messages) == ("1+1", "2", "count", ())
    assert problem.extra == {"about": {"level": 3, "tags": ["a"]}, "about.level": 3}
    assert [
        loaded(tmp_path, row, **names, id=name)[0].id for name in ("id", "key", "about.level", "none", "about.none", None)
    ] == [
        *("7", "k", "3"),
        *["train/1"] * 3,
    ]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], [("user", "1+1?")]),
        ([SYSTEM, PARTS], [("system", ""), ("user", "1+1?")]),
        (
            [{"role": "user", "content": "Hm", "name": None, "tool_calls": None}, REPLY | {"tool_calls": []}, USER],
            [("user", "Hm"), ("assistant", "It is 2."), ("user", "1+1?")],
        ),
    ],
)
def test_a_prompt_of_messages(tmp_path, messages, expected):
    (problem,) = loaded(tmp_path, {"prompt": messages, "answer": "2", "completion": [REPLY]}, solution="completion")
    assert problem.messages == tuple(expected)
    assert (problem.prompt, problem.solution) == ("1+1?", "It is 2.")


def test_one_list_with_prompt_and_solution(tmp_path):
    (problem,) = loaded(tmp_path, {"messages": [USER, REPLY], "answer": "2"}, prompt="messages", solution="messages")
    assert (problem.messages, problem.prompt, problem.solution) == ((("user", "1+1?"),), "1+1?", "It is 2.")


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (r"So $\boxed{1}$, no: $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),  # TRL's `solution`
        (["4"], "4"),
        ([4.0], "4"),
        (1e-5, "0.00001"),
        (["4", "four"], r"field answer: has 2 items, and a problem has one answer\. .*answer\.0"),
        ({"target": "4"}, r"field answer: is .* Name a field inside it, as answer\.target"),
        (True, r"field answer: is True"),
        (float("nan"), r"field answer: is nan"),
    ],
)
def test_answers(tmp_path, answer, read):
    row = {"prompt": "x", "answer": answer}
    if not read.startswith("field"):
        assert loaded(tmp_path, row)[0].answer == read
        return
    with pytest.raises(UserError, match=rf"train\.jsonl, line 1, {read}"):
        loaded(tmp_path, row)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], r"field prompt: is an empty list"),
        (["1+1?"], r"field prompt, message 1: is '1\+1\?'"),
        ([USER, {"role": "user", "content": None}], r"field prompt, message 2, field content: is None"),
        ([{"from": "human", "value": "x"}], r"field prompt, message 1: has no field 'role'\. Its fields are 'from', 'value'"),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            r"field prompt, message 1, field content: has a part of the type 'image'",
        ),
        ([{"role": "user", "content": "\0"}], r"field prompt, message 1, field content: has a NUL"),
        ([SYSTEM], r"field prompt: has no message of the user"),
        ([{"role": "user", "content": " "}], r"field prompt: has no text of the user"),
        ([USER, REPLY], r"field prompt: ends with a message of the assistant.*data\.solution"),
        (str([USER]), r"field prompt: is a list of messages that was written as text"),
        (json.dumps([USER]), r"field prompt: is a list of messages that was written as text"),
        (USER, r"field prompt: is \{"),
        ([USER, CALL, USER], r"field prompt, message 2, field tool_calls: is not empty, and calls of tools are not supported"),
        (
            [USER, REPLY | {"function_call": {"name": "f"}}, USER],
            r"field prompt, message 2, field function_call: is not empty",
        ),
    ],
)
def test_prompts_that_are_refused(tmp_path, prompt, message):
    with pytest.raises(UserError, match=rf"train\.jsonl, line 1, {message}"):
        loaded(tmp_path, {"prompt": prompt, "answer": "2"})


def test_a_solution_ends_with_the_assistant(tmp_path):
    with pytest.raises(UserError, match="field completion: does not end with a text of the assistant"):
        loaded(tmp_path, {"prompt": [USER], "answer": "2", "completion": [USER]}, solution="completion")


def test_a_solution_with_a_call_of_a_tool_is_refused(tmp_path):
    with pytest.raises(UserError, match="field completion, message 1, field tool_calls: is not empty"):
        loaded(tmp_path, {"prompt": [USER], "answer": "2", "completion": [CALL, REPLY]}, solution="completion")


def test_a_column_of_tools_is_said_once_not_to_be_read(tmp_path, caplog):
    rows = [{"prompt": "x", "answer": "1", "tools": tools} for tools in ([{"name": "f"}], [{"name": "g"}], [], None)]
    assert len(loaded(tmp_path, *rows)) == 4
    (said,) = [record.getMessage() for record in caplog.records]
    assert "2 rows of the train split have tools, which are not read" in said
    caplog.clear()
    loaded(tmp_path, *rows, extra=["tools"])
    loaded(tmp_path, *rows[2:])
    assert not caplog.records


def test_problems_without_answers(tmp_path, caplog):
    rows = [{"prompt": "x", "gold": ""}, {"prompt": "y", "gold": None}, {"prompt": "z", "gold": []}]
    assert [p.answer for p in loaded(tmp_path, *rows, answer=None)] == ["", "", ""]
    assert not caplog.records
    assert [p.answer for p in loaded(tmp_path, *rows, answer="gold")] == ["", "", ""]
    assert "no row of the train split has an answer; the first: " in caplog.text
    assert "train.jsonl, line 1, field gold: is ''" in caplog.text
    assert [p.answer for p in loaded(tmp_path, *rows, {"prompt": "u", "gold": "4"}, answer="gold")] == ["4"]
    with pytest.raises(UserError, match=r"has no field 'answer'\. Its fields are .*write data\.answer=null"):
        loaded(tmp_path, *rows)


def test_fields_that_need_not_be_there(tmp_path):
    rows = [{"prompt": "x", "answer": "1", "a": {"b": 1}}, {"prompt": "y", "answer": "2"}]
    first, second = loaded(tmp_path, *rows, extra=["a.b", "c"], optional=["a.b", "c"])
    assert (first.extra, second.extra) == ({"a.b": 1, "c": None}, {"a.b": None, "c": None})
    with pytest.raises(UserError, match=r"line 1: has no field 'c'"):
        loaded(tmp_path, *rows, extra=["a.b", "c"], optional=["a.b"])


def test_verls_columns(tmp_path):
    rows = [
        {
            "data_source": "openai/gsm8k",
            "prompt": [SYSTEM, USER],
            "ability": "math",
            "reward_model": {"ground_truth": "2", "style": "rule"},
            "extra_info": {"answer": "1+1=2\n#### 2", "index": i, "question": "1+1?", "split": "train"},
        }
        for i in range(2)
    ]
    pandas.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    fields = {"answer": "reward_model.ground_truth", "solution": "extra_info.answer", "extra": ["data_source", "extra_info"]}
    first, second = jsonl.load(str(tmp_path / "train.parquet"), "train", prompt="prompt", **fields)
    assert first.messages == (("system", ""), ("user", "1+1?"))
    assert (first.answer, first.solution, first.id) == ("2", "1+1=2\n#### 2", "train/1")
    assert second.extra == {"data_source": "openai/gsm8k", "extra_info": rows[1]["extra_info"]}


@pytest.mark.parametrize("value", [float("nan"), pandas.Timestamp("2020-01-01"), b"x"])
def test_further_fields_are_what_json_can_hold(tmp_path, value):
    table = pyarrow.table({"prompt": ["x"], "answer": ["1"], "more": [value]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train\.parquet, row 1, field more: is not text, a finite number"):
        jsonl.load(str(tmp_path), "train", "prompt", "answer", extra=["more"])
