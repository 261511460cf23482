from json_lines import write

from dash_exp.data import mbpp_plus
from dash_exp.rewards.code import CodeReward

PLUS = {
    "task_id": 2,
    "prompt": "Write a function to add.",
    "code": "def add(a, b):\n    return a + b",
    "test_imports": ["from math import inf"],
    "test_list": ["assert add(1, 2) == 3"],
    "test": """import numpy as np
from math import inf
def near(out, exp, atol):
    if atol == 0 and isinstance(exp, float):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp, f"out: {out}, exp: {exp}"
inputs = [[1, 2], [0.1, 0.2], [inf, 1], [[1], [2]]]
results = [3, 0.3, inf, [1, 2]]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    near(add(*inp), exp, 0)
""",
}


def test_mbpp_plus_is_split_as_mbpp_is_and_graded_by_its_script(bubblewrap, tmp_path):
    rows = [PLUS | {"task_id": n} for n in (2, 11, 510, "Mbpp/511", 809)]
    write(tmp_path, rows, "mbpp_plus.jsonl")
    train, test = (mbpp_plus.load(str(tmp_path), split) for split in ("train", "test"))
    assert [p.id for p in train] == ["mbpp_plus/2", "mbpp_plus/511", "mbpp_plus/809"]
    assert [p.id for p in test] == ["mbpp_plus/11", "mbpp_plus/510"]
    assert train[0].prompt == "Write a function to add.\nThe program must pass these tests:\nassert add(1, 2) == 3\n"
    assert train[0].tests == ("from math import inf", PLUS["test"])
    wrong = "def add(a, b):\n    return a + b if a != 0.1 else 0.301"
    scores = CodeReward()(train[:2], [train[0].solution, wrong])
    assert (scores.rewards, scores.errors) == ([1, 0], 0)


def test_mbpp_plus_from_the_hub_is_split_the_same_way(monkeypatch):
    rows = [PLUS | {"task_id": n} for n in (2, 11)]
    monkeypatch.setattr(
        "datasets.load_dataset", lambda path, name, split: {("evalplus/mbppplus", None, "test"): rows}[path, name, split]
    )
    assert [p.id for p in mbpp_plus.load("evalplus/mbppplus", "train")] == ["mbpp_plus/2"]
    assert [p.id for p in mbpp_plus.load("evalplus/mbppplus", "test")] == ["mbpp_plus/11"]
