from dash_exp.core.words import duration, error_line, first_line


def test_durations_have_minutes_and_where_needed_hours():
    assert [duration(s) for s in (0, 75, 3599.6, 3700)] == ["0:00", "1:15", "1:00:00", "1:01:40"]


def test_the_first_line_that_is_not_blank():
    assert first_line("\n  \n  one \ntwo") == "one"
    assert first_line("") == first_line(None) == ""


def test_errors_in_one_line():
    assert error_line(ValueError("\nwrong shape\nat line 3")) == "wrong shape"
    assert error_line(KeyError()) == "KeyError"
    assert len(error_line(ValueError("a" * 1000))) == 300
