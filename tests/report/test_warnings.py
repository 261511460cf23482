"""Warnings about the cells of a comparison."""

import json

import pytest
from reports import warnings_of

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_a_torn_file_is_as_good_as_none(sweep):
    (sweep / "algo=dash,seed=0" / "metrics.csv").write_bytes(b"step,a\n1,2\n1,2,3,4\n")
    (sweep / "algo=dash,seed=0" / "problems.csv").write_bytes(b"\xff\xfe\x00")
    said = warnings_of(sweep)
    assert "metrics.csv is missing or unreadable in 1 done cell" in said
    assert "problems.csv is missing or unreadable in 1 done cell" in said


def test_other_machines_and_failed_gradings(sweep):
    for seed, changed in enumerate(({"git": "b" * 40}, {"device": "Some GPU"}, {"device": "Some CPU, 4 thread(s)"})):
        file = sweep / f"algo=dash,seed={seed}" / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed | {"score/timeouts": 2, "sizes/parameters": 2000}))
    said = warnings_of(sweep)
    assert "different git revisions: " in said and "bbbbbbbbbbbb (1 cell)" in said
    assert "different devices" in said and "Some GPU (1 cell)" in said
    assert "different numbers of torch threads" in said
    assert "6 time-outs in training" in said
    assert "parameters differs between cells" in said and "files have changed" in said
