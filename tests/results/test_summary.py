from dash_exp.core.metrics import PHASES
from dash_exp.results.summary import result_table

RESULT = {
    "accuracy/in_dist/base": 0.25,
    "accuracy/in_dist/final": 0.9,
    "accuracy/math500/base": 0.125,
    "eval/in_dist/length/mean_tokens/base": 12.34,
    "eval/in_dist/length/mean_tokens/final": 20.0,
    "time/total_s": 100.0,
    **{f"time/{phase}_s": 10.0 for phase in PHASES},
    "completions/sampled": 1000,
    "completions/kept": 400,
    "tokens/sampled": 20000,
    "tokens/trained": 9000,
}


def test_the_table_says_the_same():
    lines = [line.split() for line in result_table(RESULT).splitlines()]
    assert ["in", "distribution", "25.0%", "90.0%"] in lines
    assert ["math500", "12.5%", "-"] in lines  # a run that failed has no final accuracy
    assert ["in", "distribution", "12.3", "20.0"] in lines  # mean length
    assert ["math500", "-", "-"] in lines
    assert ["time", "1:40"] in lines
    assert ["sample", "10.0s", "10%"] in lines
    assert ["other", "(set-up,", "files)", "50.0s", "50%"] in lines


def test_a_run_that_learned_nothing_says_so():
    assert "no completion was trained on" in result_table(RESULT | {"completions/kept": 0})
    assert "no completion was trained on" not in result_table(RESULT)


def test_what_the_watch_saw_is_said():
    fired = {"watch/kl_blowup": 3, "watch/nonfinite": 1, "watch/clipped": 0, "watch/stopped_by": None}
    line = "watch: nonfinite in 1 outer step, kl_blowup in 3; 2 optimizer steps skipped"
    assert line in result_table(RESULT | fired | {"optimizer/skipped_steps": 2}).splitlines()
    assert "watch" not in result_table(RESULT | {"watch/kl_blowup": 0, "optimizer/skipped_steps": 0})
