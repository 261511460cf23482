"""Rows of files of every kind, and what cannot be read, by file and row."""

import json

import pandas
import pytest
from json_lines import write

from dash_exp.core.errors import UserError
from dash_exp.data import readers

ROWS = [{"q": "1+1?", "a": "2"}, {"q": 'He said: "3,\n4"?', "a": "007"}]


def read(path, split="train", subset=None):
    return [row for row, _, _ in readers.rows_of(str(path), split, subset)]


def save(folder, ending, rows):
    folder.mkdir(exist_ok=True)
    file = folder / f"train{ending}"
    if ending == ".jsonl":
        write(folder, rows)
    elif ending == ".json":
        file.write_text(json.dumps(rows, indent=2))
    elif ending == ".csv":
        pandas.DataFrame(rows).to_csv(file, index=False)
    else:
        pandas.DataFrame(rows).to_parquet(file)
    return file


@pytest.mark.parametrize("ending", readers.READERS)
def test_the_same_rows_from_a_file_of_every_kind(tmp_path, ending):
    file = save(tmp_path / "d", ending, ROWS)
    assert read(tmp_path / "d") == read(file) == ROWS
    assert [name for _, _, name in readers.rows_of(str(file), "train")] == ["train/1", "train/2"]
    assert read(file, "train[1:]") == read(tmp_path / "d", "train[1:2]") == ROWS[1:]
    assert read(file, "train[:1]+train[0:2]") == [ROWS[0], *ROWS]
    for split in ("train[:50%]", "train[-1:]", "train[1]", "train[:1"):
        with pytest.raises(UserError, match=r"^split train\[.*: cannot be read as a part of a file\. Write numbers of rows"):
            read(file, split)


def test_a_long_value_in_csv(tmp_path):
    """The tests of a program can have more characters than Python reads of a value by default."""
    long = [{"q": "1+1?", "a": "2, " * 70_000}]
    assert read(save(tmp_path, ".csv", long)) == long


def test_tables_as_pandas_writes_them(tmp_path):
    table = pandas.DataFrame(
        {"q": ["x", "y", "z"], "a": [1, None, 1e-5], "who": [None, "me", "you"], "m": [[{"role": "u"}]] * 3}
    )
    table.to_parquet(tmp_path / "train.parquet")
    assert read(tmp_path) == [
        {"q": "x", "a": 1.0, "who": None, "m": [{"role": "u"}]},
        {"q": "y", "a": None, "who": "me", "m": [{"role": "u"}]},
        {"q": "z", "a": 1e-5, "who": "you", "m": [{"role": "u"}]},
    ]
    table[["q", "a"]].to_csv(tmp_path / "rows.csv", encoding="utf-8-sig")  # with its index, and with a mark at the start
    assert read(tmp_path / "rows.csv")[:2] == [{"": "0", "q": "x", "a": "1.0"}, {"": "1", "q": "y", "a": ""}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "train.csv",
            b"q,a\nx,1\nwhat is 1,000?,1\n",
            r"train\.csv, line 3: has 3 values, and the first line 2 names\. .*quotation",
        ),
        ("train.csv", b'q,a\n"x\ny",1\nz\n', r"train\.csv, line 4: has 1 values"),
        ("train.csv", b'q,a\nx,1\n"open,1\n', r"train\.csv, line 3: is not valid CSV"),
        ("train.csv", b'q,a\n"x"y,1\n', r"train\.csv, line 2: is not valid CSV"),
        ("train.csv", b"q;a\nx;1\n", r"line 1: has semicolons between its names"),
        ("train.csv", b"q,q\nx,1\n", r"line 1: has the name 'q' twice"),
        ("train.csv", "q,a\nx,1\né,2\n".encode("cp1252"), r"train\.csv, line 3: is not UTF-8 \(.*byte 1\)"),
        ("train.csv", "q,a\n".encode("utf-16"), r"line 1: is not UTF-8 but UTF-16"),
        ("train.csv", b"PK\x03\x04", r"line 1: is compressed"),
        ("train.json", b'[{"q": 1},\n {"q": }]', r"train\.json, line 2: is not valid JSON \(.*column 8\)"),
        ("train.json", b'{"q": 1}\n{"q": 2}\n', r"train\.json: has more than one value\. Name it \.jsonl"),
        ("train.json", b'{"data": []}', r"train\.json: is not a list"),
        ("train.json", b'[{"q": 1}, 2]', r"train\.json, object 2: is not a JSON object"),
        (
            "train.jsonl",
            b'{"q": 1}\n[1]',
            r"train\.jsonl, line 2: is not a JSON object.* a list of all objects is a file \.json",
        ),
        ("train.jsonl", b'{"q": "\xff"}', r"train\.jsonl, line 1: is not UTF-8"),
        ("train.jsonl", b"PAR1", r"line 1: is parquet"),
        ("train.parquet", b"PAR1", r"train\.parquet: cannot be read as parquet"),
        ("train.parquet", b"", r"train\.parquet: cannot be read as parquet"),
        ("test.jsonl", b"", r"^data\.path=.*: there is no file .*train\.jsonl \(nor \.json, \.parquet, \.csv\)"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_which_file(tmp_path):
    save(tmp_path / "d", ".jsonl", ROWS)
    save(tmp_path / "d", ".csv", ROWS)
    with pytest.raises(UserError, match=r"^data\.path=.*: there are both train\.jsonl and train\.csv"):
        read(tmp_path / "d")
    (tmp_path / "rows.tsv").write_text("q\ta\n")
    with pytest.raises(UserError, match=r"rows\.tsv: has an ending that is not known\. .*\.jsonl, \.json, \.parquet, \.csv"):
        read(tmp_path / "rows.tsv")
    with pytest.raises(UserError, match="there is no file"):
        read(tmp_path / "none.csv")


def test_what_is_meant_as_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not readers.is_local("owner/name")
    assert all(map(readers.is_local, ("name", "a/b/c", "./a", "../a/b", "/a/b", "~/a", "a/train.parquet")))
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert readers.is_local("owner/name")


def test_a_folder_without_one_split(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for ending in readers.READERS:
        folder = tmp_path / ending[1:]
        save(folder, ending, ROWS)
        with pytest.raises(
            UserError, match=rf"^data\.path=.*: there is no file {folder}/test\..*data\.tests\.NAME\.path=FILE.*"
        ) as error:
            read(folder, "test")
        assert "\"data.split='train[:100]'\"" in str(error.value)
        assert read(folder, "train[:100]") == ROWS


def test_a_copy_of_a_data_set_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "copy"
    for subset, answer in (("main", 1), ("hard", 2)):
        (folder / subset).mkdir(parents=True)
        for split, size in (("train", 4), ("test", 2)):
            rows = {"q": [[{"role": "user", "content": f"{split} {i}"}] for i in range(size)], "a": [answer] * size}
            pandas.DataFrame(rows).to_parquet(folder / subset / f"{split}-00000-of-00001.parquet")
    configs = [f'- config_name: {s}\n  data_files:\n  - split: train\n    path: "{s}/train-*"' for s in ("main", "hard")]
    (folder / "README.md").write_text("\n".join(["---", "configs:", *configs, "---", ""]))
    assert [row["a"] for row in read(folder, "train", "hard")] == [2] * 4
    (row,) = read(folder, "train[3:]", "main")
    assert row == {"q": [{"role": "user", "content": "train 3"}], "a": 1}
    with pytest.raises(UserError, match=r"could not be loaded as a copy of one of the hub \(.*hard"):
        read(folder, "train")
    with pytest.raises(UserError, match=r"there is no file .*/test\.parquet, nor another one of this split; .* 'train'\. "):
        read(folder, "test", "main")


def test_a_data_set_of_the_hub_without_one_split(monkeypatch):
    def without_test(path, name, split):
        raise ValueError("Unknown split \"test\". Should be one of ['train'].")

    monkeypatch.setattr("datasets.load_dataset", without_test)
    with pytest.raises(UserError, match=r"^data set a/b: has no split 'test'; what is there is 'train'\. .*data\.split"):
        read("a/b", "test")
