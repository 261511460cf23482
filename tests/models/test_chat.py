"""Chat templates with the habits of those on the hub: what the model gets of a conversation."""

import logging

import pytest
from special_tokens import CHAT, END, EOS, OPENS, TURNS, made

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.data.prompt_form import PromptForm
from dash_exp.models.chat import ChatTemplate, is_instruct

NO_SYSTEM = "{% for m in messages if m['role'] != 'system' %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}" + OPENS
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT
THINKS = (
    TURNS + "{% if add_generation_prompt %}{{ '[assistant]' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
# Mistral's: a user's turn ends where the answer begins, and what divides them belongs to the answer.
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + '<eos>' }}{% endif %}{% endfor %}"
)

LLAMA = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
FORGETS = TURNS.replace("m['content']", "m['content'].split('</think>')[-1]") + OPENS


def prompt(tokenizer, problem, **form):
    (found,) = PromptForm(chat=True, **form).prompts([problem], tokenizer)
    return tokenizer.decode(found.ids).replace("<end of turn>", "/")


# habit: (what the tokenizer puts around a text, template, form, what the model gets for 1+1)
HABITS = {
    "writes the day": (("", ""), "{{ strftime_now('%d %b %Y') }}" + CHAT, {}, "26 Jul 2024[user]1+1/[assistant]"),
    "writes the day, as Llama 3.2": (
        *(("", ""), LLAMA + CHAT),
        {"options": {"date_string": "1 Jan 2026"}},
        "1 Jan 2026[user]1+1/[assistant]",
    ),
    "adds nothing": (("", ""), CHAT, {}, "[user]1+1/[assistant]"),
    "BOS by template and tokenizer": (("<bos>", ""), "{{ bos_token }}" + CHAT, {}, "<bos>[user]1+1/[assistant]"),
    "BOS by the tokenizer alone": (("<bos>", ""), CHAT, {}, "[user]1+1/[assistant]"),  # the template's word counts
    "EOS by the tokenizer": (("<bos>", "<eos>"), "{{ bos_token }}" + CHAT, {}, "<bos>[user]1+1/[assistant]"),
    "EOS by the template": (("", ""), CHAT + "{{ eos_token }}", {}, "[user]1+1/[assistant]"),
    "no generation prompt": (("", ""), TURNS, {}, "[user]1+1/[assistant]"),
    "no generation prompt, EOS": (("", ""), TURNS + "{{ eos_token }}", {}, "[user]1+1/[assistant]"),
    "answer begins in the user's turn": (("", ""), INST, {}, "[INST]1+1[/INST]"),
    "system": (("", ""), CHAT, {"system": "Be brief."}, "[system]Be brief./[user]1+1/[assistant]"),
    "drops the system turn": (("", ""), NO_SYSTEM, {"system": "Be brief."}, "[user]Be brief.\n\n1+1[assistant]"),
    "drops an empty one": (("", ""), NO_SYSTEM, {"system": ""}, "[user]1+1[assistant]"),
    "refuses it": (("", ""), REFUSES, {"system": "Be brief."}, "[user]Be brief.\n\n1+1/[assistant]"),
    "thinks": (("", ""), THINKS, {}, "[user]1+1/[assistant]"),
    "thinks not": (
        *(("", ""), THINKS, {"options": {"enable_thinking": False}}),
        "[user]1+1/[assistant]<think></think>",
    ),
    "null is no option": (("", ""), THINKS, {"options": {"enable_thinking": None}}, "[user]1+1/[assistant]"),
    "strips": (
        ("", ""),
        CHAT.replace("m['content']", "(m['content'] | trim)"),
        {"text": "{prompt}\n"},
        "[user]1+1/[assistant]",
    ),
    "prefill": (("", ""), CHAT, {"prefill": "<think>"}, "[user]1+1/[assistant]<think>"),
    "begins to think by itself": (
        *(("", ""), CHAT + "{% if add_generation_prompt %}<think>\n{% endif %}", {"prefill": "<think>"}),
        "[user]1+1/[assistant]<think>\n",
    ),
}


@pytest.mark.parametrize("habit", HABITS)
def test_what_the_model_gets(habit):
    around, template, form, expected = HABITS[habit]
    tokenizer = made(*around, chat_template=template)
    assert prompt(tokenizer, Problem("p", "1+1", "2"), **form) == expected


TAGS = "{% for m in messages %}{{ '<turn><' + m['role'] + '>' + m['content'] }}{% endfor %}"  # turns that are tags
# Qwen3-Thinking's: an answer without thoughts is written behind an empty one.
EMPTY = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' }}{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
)
REFUSES_ANSWERS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('No.') }}{% endif %}{% endfor %}" + CHAT
)


@pytest.mark.parametrize(
    ("template", "asked", "begun"),
    [
        (CHAT, "1+1", ""),
        (CHAT + "{% if add_generation_prompt %}<think>\n{% endif %}", "1+1", "<think>\n"),  # as DeepSeek-R1's
        (CHAT + "{% if add_generation_prompt %}<thought>{% endif %}", "1+1", "<thought>"),
        (EMPTY, "1+1", "<think>\n"),
        (REFUSES_ANSWERS + "{% if add_generation_prompt %}<think>{% endif %}", "1+1", "<think>"),
        (CHAT + "{% if add_generation_prompt %}<think>\n\n</think>\n\n{% endif %}", "1+1", ""),  # it opens nothing
        (TAGS + "{% if add_generation_prompt %}<turn><assistant>{% endif %}", "1+1", ""),  # a header
        (TAGS + "{% if add_generation_prompt %}<turn><assistant><think>{% endif %}", "1+1", "<think>"),
        (TAGS + "<assistant>", "1+1", ""),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "Write <answer>", ""),  # the user's own tag
        (CHAT, "Write <think>", ""),
    ],
)
def test_what_a_template_begins_of_the_answer(template, asked, begun):
    template, turns = ChatTemplate(made(chat_template=template)), [("user", asked)]
    opened = template.opened(turns)
    assert template.begun(turns, opened) == begun
    assert opened.endswith(begun)


def test_it_is_what_transformers_makes():
    """By template and tokenizer at once, with a special token in the problem."""
    tokenizer = made("<bos>", "<eos>", chat_template="{{ bos_token }}" + CHAT)
    problem = Problem("p", "What does <think> mean, é?", "")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": problem.prompt}], add_generation_prompt=True, return_dict=False
    )
    (found,) = PromptForm(chat=True).prompts([problem], tokenizer)
    assert list(found.ids) == ids


def test_what_a_template_does_not_have_is_said_once_for_all_problems(caplog):
    tokenizer = made(chat_template=REFUSES)
    form = PromptForm(chat=True, system="Be brief.", options={"enable_thinking": False})
    for _ in ("data.train", "data.tests.in_dist"):
        form.prompts([Problem(str(i), f"{i}+1", "") for i in range(5)], tokenizer)
    option, system = [record.getMessage() for record in caplog.records]
    assert option.startswith("prompt.options.enable_thinking: the chat template of ")
    assert system == "the chat template has no system turn: the system prompt begins the first user's turn"


def test_thoughts_that_a_template_leaves_out_of_an_earlier_answer_are_said_once(caplog):
    """As Qwen3's does."""
    form = PromptForm(chat=True, few_shot=1)
    train = [Problem(f"t{i}", f"{i}+0", "", f"<think>zero and {i}</think>{i}") for i in range(3)]
    tokenizer = made(chat_template=FORGETS)
    for _ in range(2):
        (found,) = form.prompts([Problem("p", "1+1", "2")], tokenizer, train)
    assert "zero" not in tokenizer.decode(found.ids)
    (record,) = caplog.records
    assert "leaves out a part of an earlier answer ('<think>zero and " in record.getMessage()


def test_an_option_that_the_template_does_not_have_is_said(caplog):
    ChatTemplate(made(chat_template=CHAT), {"enable_thinking": False})
    ChatTemplate(made(chat_template=THINKS), {"enable_thinking": False})
    assert len(caplog.records) == 1
    assert "prompt.options.enable_thinking: the chat template" in caplog.text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, r"^prompt\.chat: the tokenizer .* has no chat template\. Write prompt=bare"),
        (
            "{{ messages[0]['content']['text'].x }}",
            r"^prompt\.chat: the chat template of .* fails on turns of user \(.* no attribute 'text'\)",
        ),
        ("{{ raise_exception('No.') }}", r"fails on turns of user \(No\.\)\. Write prompt=bare"),
        ("{% for %}", r"fails on turns of user \("),
        ("[user]" + OPENS, r"leaves out a text of the conversation \('1\+1'\)"),
    ],
)
def test_templates_that_cannot_be_used(template, message):
    with pytest.raises(UserError, match=message):
        prompt(made(chat_template=template), Problem("p", "1+1", "2"))


@pytest.mark.parametrize(
    ("template", "eos", "expected"),
    [
        (CHAT, {END}, True),  # as Qwen2.5-Instruct, whose EOS ends a turn
        (CHAT, {EOS}, False),  # as Qwen2.5, whose EOS ends a text
        (CHAT, {EOS, END}, True),  # as Gemma: the second is in generation_config.json
        (INST, {EOS}, True),  # as Mistral
        (None, {EOS}, False),
        ("{{ raise_exception('No.') }}", {EOS}, False),
    ],
)
def test_a_template_alone_makes_no_instruct_model(template, eos, expected):
    assert is_instruct(made(chat_template=template), frozenset(eos)) == expected


def test_a_template_that_refuses_an_answer_still_asks():
    """What ends a turn is then not known, and written solutions end with EOS."""
    tokenizer = made(chat_template=REFUSES_ANSWERS)
    (found,) = PromptForm(chat=True, eos_ids=frozenset({EOS})).prompts([Problem("p", "1+1", "2")], tokenizer)
    assert (tokenizer.decode(found.ids), found.end) == ("[user]1+1<end of turn>[assistant]", None)


MESSAGES = (("system", "Use metres."), ("user", "How high?"))


@pytest.mark.parametrize(
    ("messages", "form", "expected"),
    [
        (MESSAGES, {}, "[system]Use metres./[user]How high?/[assistant]"),
        (MESSAGES, {"system": "Be brief."}, "[system]Use metres./[user]How high?/[assistant]"),
        (MESSAGES[1:], {"system": "Be brief."}, "[system]Be brief./[user]How high?/[assistant]"),
        (MESSAGES[1:], {"text": "{prompt} {x}"}, "[user]How high? {x}/[assistant]"),
        (
            (("user", "a"), ("assistant", "b"), ("user", "c")),
            {"text": "<{prompt}>"},
            "[user]a/[assistant]b/[user]<c>/[assistant]",
        ),
        ((*MESSAGES[1:], ("assistant", "It is ")), {}, "[user]How high?/[assistant]It is "),  # an answer that is begun
    ],
)
def test_the_problems_own_conversation(messages, form, expected, caplog):
    problem = Problem("p", "How high?", "3", messages=messages)
    assert prompt(made(chat_template=CHAT), problem, **form) == expected
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_as_text_a_conversation_is_its_prompt():
    (found,) = PromptForm(text="Q: {prompt}").prompts(
        [Problem("p", "How high?", "3", messages=MESSAGES)], made("<bos>", "<eos>")
    )
    assert made().decode(found.ids) == "<bos>Q: How high?"
