"""Settings of the prompt that are refused."""

import pytest
from conftest import composed
from refusals import assert_each_is_met, assert_refused, refusal

from dash_exp.settings import prompt
from dash_exp.settings.validate import validate

BAD = [
    ("prompt._target_=dash_exp.data.prompts.tokenized", "prompt._target_=dash_exp.data.prompts.tokenized: is not known"),
    ("prompt.text=Hello", "prompt.text='Hello': has no place for the problem. Put {prompt} into it"),
    ("prompt.text=3", "prompt.text=3: is not a text"),
    ("prompt.chat=yes", "prompt.chat=yes: is not known. Use one of auto, true, false"),
    ("prompt.chat=1", "prompt.chat=1: is not known"),
    ("prompt.system=[a]", "prompt.system=['a']: is not a text"),
    ("prompt.prefill=7", "prompt.prefill=7: is not a text"),
    ("prompt.few_shot=-1", "prompt.few_shot=-1: is not a whole number of at least 0"),
    ("prompt.stop=abc", "prompt.stop=abc: is not a list of texts. Write one, as in \"prompt.stop=['</answer>']\""),
    ("prompt.stop=['']", "prompt.stop=['']: is not a list of texts"),
    ("prompt.stop=[3]", "prompt.stop=[3]: is not a list of texts"),
    ("prompt.options=3", "prompt.options=3: is not a section of settings"),
    ("+prompt.options.tokenize=true", "prompt.options.tokenize: is given by the run itself"),
    ("+prompt.stops=[a]", "prompt.stops: dash_exp.data.prompt_form.PromptForm has no such setting. Did you mean stop?"),
    ("model.instruct=maybe", "model.instruct=maybe: is not known. Use one of auto, true, false"),
    ("data=math500 prompt=few_shot", "prompt.few_shot=4: shows training problems, and data.train is null"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=lambda given: given)
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


def test_every_refusal_has_a_case():
    assert_each_is_met(prompt, [refusal(bad) for bad, _ in BAD])


def test_runs_of_earlier_versions_have_no_prompt():
    cfg = composed()
    del cfg.__dict__["_content"]["prompt"], cfg.model.__dict__["_content"]["instruct"]
    validate(cfg, earlier=True)


@pytest.mark.parametrize(
    ("chat", "instruct", "may"),
    [
        ("auto", "auto", True),
        ("auto", True, True),
        ("auto", False, False),
        (True, False, True),
        (False, True, False),
    ],
)
def test_settings_that_may_ask_in_a_chat(chat, instruct, may):
    assert prompt.may_be_chat({"chat": chat}, {"instruct": instruct}) is may


def test_settings_without_the_choice_leave_it_to_the_tokenizer():
    assert prompt.may_be_chat({}, {})
    assert prompt.may_be_chat({"chat": "auto"}, {})
