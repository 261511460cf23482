import pytest
from special_tokens import CHAT, made

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.data.prompt_form import PromptForm
from dash_exp.data.prompts import check_answers, tokenized
from dash_exp.rewards.exact import ExactReward
from dash_exp.rewards.format import FormatReward

SHORT, LONG = Problem("s", "1+1=", "2"), Problem("l", "1+1=", "One and one are two.\n#### 2")


def test_answers_that_are_longer_than_a_completion(tokenizer, caplog):
    """A solution in the field of the answer, for example."""
    exact = ExactReward("A:(.+)")
    check_answers(exact, [SHORT], tokenizer, 8, "data.train")
    check_answers(FormatReward(".*"), [LONG], tokenizer, 8, "data.train")  # which does not read the answer
    assert not caplog.text
    check_answers(exact, [SHORT, LONG], tokenizer, 8, "data.train")
    assert "data.train: 1 of 2 answers have more tokens than rollout.max_response_tokens=8, as 'One and one" in caplog.text
    with pytest.raises(UserError, match=r"^data\.train: all answers have more tokens than .*=8, as 'One .*data\.answer"):
        check_answers(exact, [LONG], tokenizer, 8, "data.train")
    with pytest.raises(UserError, match=r"more tokens than data\.tests\.t\.max_response_tokens=8, as"):
        check_answers(exact, [LONG], tokenizer, 8, "data.tests.t", "data.tests.t.max_response_tokens")


def test_messages_that_a_prompt_of_text_leaves_out_are_counted(caplog):
    messages = (("system", "Use metres."), ("user", "How high?"))
    problems = [Problem(str(n), "How high?", "3", messages=messages[n:]) for n in range(3)]
    tokenizer = made(chat_template=CHAT)
    tokenized(problems, tokenizer, 99, 9, "data.train", form=PromptForm(chat=True))
    tokenized(problems[1:], tokenizer, 99, 9, "data.train")
    assert not caplog.text
    tokenized(problems, tokenizer, 99, 9, "data.train")
    assert "data.train: 1 of 3 prompts have several messages, of which the model gets only the user's last one" in caplog.text
