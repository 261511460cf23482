import pandas as pd

from dash_exp.results.problems import changed_problems, differ, sets_that_differ, told_apart

ROWS = pd.DataFrame({"test": ["t", "t", "u"], "problem": ["1", "2", "1"], "base": 0, "final": 1})


def test_what_was_not_recorded_counts_as_the_same():
    assert differ(None, {"data.train": "a"}) == differ({}, {"data.train": "a"}) == []
    assert differ({"data.train": "b", "data.tests.t": "c"}, {"data.train": "a", "data.tests.t": "c"}) == ["data.train"]
    assert sets_that_differ([{"digest/data.train": "a"}, {}, {"digest/data.train": "a", "steps": 3}]) == []
    assert sets_that_differ([{"digest/data.train": "a"}, {"digest/data.train": "b"}]) == ["data.train"]


def test_problems_that_have_changed_get_names_of_their_own():
    one, other = ROWS.assign(digest=["a", "b", "c"]), ROWS.assign(digest=["a", "d", "c"])
    assert changed_problems([one, one]) == changed_problems([one, ROWS]) == changed_problems([]) == frozenset()
    changed = changed_problems([one, other, ROWS])
    assert changed == {("t", "2")}
    assert told_apart(one, changed)["problem"].tolist() == ["1", "2 (b)", "1"]
    assert told_apart(other, changed)["problem"].tolist() == ["1", "2 (d)", "1"]
    assert told_apart(ROWS, changed)["problem"].tolist() == ["1", "2 (unknown)", "1"]
    assert told_apart(one, frozenset()) is one
