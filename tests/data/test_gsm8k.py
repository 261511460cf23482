from json_lines import write

from dash_exp.data import gsm8k

ROW = {"question": "Two and two?", "answer": "2+2 is <<2+2=4>>4.\n#### 1,004"}


def test_gsm8k_rows(tmp_path):
    (problem,) = gsm8k.load(write(tmp_path / "d", [ROW]), "train")
    assert (problem.prompt, problem.answer) == ("Two and two?", "1004")
    assert problem.solution == "2+2 is 4.\n#### 1,004"
    (kept,) = gsm8k.load(str(tmp_path / "d"), "train", annotations=True)
    assert kept.solution == "2+2 is <<2+2=4>>4.\n#### 1,004"
    assert (kept.prompt, kept.answer, kept.id) == (problem.prompt, problem.answer, problem.id)


def test_problem_ids_do_not_depend_on_where_the_folder_is(tmp_path):
    here, there = write(tmp_path / "here", [ROW]), write(tmp_path / "there", [ROW])
    assert gsm8k.load(here, "train") == gsm8k.load(there, "train")
