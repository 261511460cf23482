from json_lines import write

from dash_exp.data import jsonl


def test_jsonl_with_fields_of_ones_own(tmp_path):
    path = write(tmp_path / "d", [{"q": "1+1", "gold": 2, "why": "count"}])
    (problem,) = jsonl.load(path, "train", prompt="q", answer="gold", solution="why")
    assert (problem.prompt, problem.answer, problem.solution) == ("1+1", "2", "count")
