from dash_exp.core.types import Problem
from dash_exp.data import arithmetic, order


def test_no_test_problem_is_trained_on():
    test = arithmetic.generate("test", "symbols", 500)
    train = order.without(arithmetic.generate("train", "symbols", 5000), test)
    assert 4000 < len(train) < 5000  # some did coincide: three numbers leave few chains
    assert not {p.prompt for p in train} & {p.prompt for p in test}


def test_a_pass_takes_every_problem_once_in_an_order_of_its_own():
    def problems_of_pass(data_pass, seed=0):  # 10 problems: three steps of 3, and one problem is left out
        return [i for step in range(3) for i in order.indices_of_step(3 * data_pass + step, 3, 10, seed)]

    first = problems_of_pass(0)
    assert len(set(first)) == len(set(problems_of_pass(1))) == 9
    assert first == problems_of_pass(0)
    assert first != problems_of_pass(1)
    assert first != problems_of_pass(0, seed=1)


def test_white_space_around_a_prompt_does_not_make_it_another():
    problems = [Problem(text, text, "1") for text in ("1+1= ", "1+2=")]
    assert [p.id for p in order.without(problems, [Problem("t", " 1+1=", "2")])] == ["1+2="]


def test_conversations_are_the_same_problem_if_all_of_their_messages_are():
    def asked(*messages):
        return Problem(str(messages), messages[-1][1], "1", messages=messages)

    short, long = asked(("user", "1+1?")), asked(("user", "Hm"), ("assistant", "Yes?"), ("user", "1+1?"))
    spaced, bare = asked(("user", "1+1? ")), Problem("bare", "1+1?", "2")
    assert order.without([short, long, bare], [spaced]) == [long]
    assert order.without([short, long, bare], [long]) == [short]  # the bare text is what the user asks in it
    assert order.without([short, long, bare, asked(("user", "2"))], [bare]) == [asked(("user", "2"))]
