"""How a problem is put to the model, as text and in a chat."""

import pytest
from conftest import composed
from special_tokens import CHAT, END, EOS, made

from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion, Problem
from dash_exp.data.prompt_form import PromptForm
from dash_exp.evaluation.evaluator import Evaluator
from dash_exp.rewards.format import FormatReward
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.traces import TraceSampler

TRAIN = [Problem(f"t{i}", f"{i}+1", str(i + 1), f"A:{i + 1}") for i in range(9)]
ASKED = Problem("p", "What is {x} in {prompt}?", "2", "So.\nA:2")


def made_of(form, problem=ASKED, train=TRAIN):
    tokenizer = made("<bos>", "<eos>", chat_template="{{ bos_token }}" + CHAT)
    (prompt,) = form.prompts([problem], tokenizer, train)
    return prompt, tokenizer


@pytest.mark.parametrize(
    ("form", "text", "chat"),
    [
        ({}, "{p}", "[user]{p}[assistant]"),
        ({"text": "{x} {prompt}\n"}, "{x} {p}\n", "[user]{x} {p}\n[assistant]"),
        ({"text": "{prompt} {prompt}"}, "{p} {p}", "[user]{p} {p}[assistant]"),
        ({"system": "Be brief."}, "Be brief.\n\n{p}", "[system]Be brief.[user]{p}[assistant]"),
        ({"system": ""}, "\n\n{p}", "[system][user]{p}[assistant]"),
        ({"prefill": "Well"}, "{p}Well", "[user]{p}[assistant]Well"),
        ({"prefill": "Well", "separator": "\n"}, "{p}\nWell", "[user]{p}[assistant]Well"),
        ({"prefill": " Well", "separator": "\n"}, "{p} Well", "[user]{p}[assistant] Well"),
    ],
)
def test_what_stands_around_a_problem(form, text, chat):
    for is_chat, expected in ((False, text), (True, chat)):
        prompt, tokenizer = made_of(PromptForm(**form, chat=is_chat))
        said = tokenizer.decode(prompt.ids).replace("<end of turn>", "")
        assert said == "<bos>" + expected.replace("{p}", ASKED.prompt)
        assert prompt.prefill == (form.get("prefill") or "")


def test_worked_examples():
    form = PromptForm(text="Q: {prompt}", few_shot=2, separator="\n", seed=3)
    prompt, tokenizer = made_of(form)
    said = tokenizer.decode(prompt.ids)
    first, second = (next(t for t in TRAIN if part == f"Q: {t.prompt}\n{t.solution}") for part in said[5:].split("\n\n")[:2])
    assert said == f"<bos>Q: {first.prompt}\n{first.solution}\n\nQ: {second.prompt}\n{second.solution}\n\nQ: {ASKED.prompt}"
    assert first != second
    in_chat = tokenizer.decode(made_of(PromptForm(text="Q: {prompt}", few_shot=2, seed=3, chat=True, system="S"))[0].ids)
    turns = [f"[user]Q: {e.prompt}<end of turn>[assistant]{e.solution}<end of turn>" for e in (first, second)]
    assert in_chat == f"<bos>[system]S<end of turn>{''.join(turns)}[user]Q: {ASKED.prompt}<end of turn>[assistant]"
    assert made_of(form)[0] == prompt  # seeded
    assert len({made_of(PromptForm(few_shot=2, seed=seed))[0].ids for seed in range(9)}) > 3


def test_a_problem_is_not_its_own_example():
    form = PromptForm(text="Q: {prompt}", few_shot=3, separator=" ")
    tokenizer = made()
    for prompt in form.prompts(TRAIN, tokenizer, TRAIN):
        said = tokenizer.decode(prompt.ids)
        assert said.count("Q: ") == 4
        assert said.count(f"Q: {prompt.problem.prompt}") == 1


@pytest.mark.parametrize("seed", range(5))
def test_worked_examples_stay_where_other_problems_come_or_go(seed):
    """As with data.limit, in another order, or without the problems of one more test set."""
    form = PromptForm(few_shot=2, seed=seed)
    many = [Problem(f"t{i}", f"{i}+1", str(i + 1)) for i in range(100)]
    shown = form.prompts([ASKED], made(), many)[0].ids
    assert form.prompts([ASKED], made(), [*many[::-1], many[0]])[0].ids == shown
    said = made().decode(shown)
    others = [p for p in many if p.prompt not in said]
    without = [p for p in many if p not in others[::7]]
    assert form.prompts([ASKED], made(), without)[0].ids == shown


def test_too_few_training_problems_for_the_examples():
    with pytest.raises(UserError, match=r"^prompt\.few_shot=9: is not less than the 9 different training problems"):
        made_of(PromptForm(few_shot=9))
    bare = [Problem("a", "2+2", ""), Problem("b", "3+3", "6")]
    with pytest.raises(UserError, match="is not less than the 1 different training problems with a solution or an answer"):
        made_of(PromptForm(few_shot=1), train=bare)


def test_without_a_solution_an_example_shows_the_answer():
    prompt, tokenizer = made_of(
        PromptForm(few_shot=1, separator="="), train=[Problem("t", "2+2", "4"), Problem("u", "3+3", "6")]
    )
    assert tokenizer.decode(prompt.ids) == f"<bos>2+2=4\n\n{ASKED.prompt}"


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    ("prefill", "solution", "trained_on"),
    [
        ("<think>", "<think>Well.</think>2", "Well.</think>2<eos>"),
        ("<think>\n", "<think>\nWell.</think>2", "Well.</think>2<eos>"),
        ("<think>", "Well.", "\nWell.<eos>"),
        ("So ", "So we add.", "we add.<eos>"),
        ("So ", "Some add.", "Some add.<eos>"),
        ("1", "12", "2<eos>"),
    ],
)
def test_a_solution_that_begins_with_the_prefill_has_it_once(chat, prefill, solution, trained_on):
    tokenizer = made(chat_template=CHAT)
    form = PromptForm(chat=chat, prefill=prefill, separator="\n")
    prompts = form.prompts([Problem("p", "1+1", "2", solution)], tokenizer)
    (completion,) = TraceSampler(tokenizer, separator="\n").sample(prompts, 1, Sampling(99), (0, 0))
    assert tokenizer.decode(completion.ids) == trained_on


def thinking(opened):
    """A tokenizer whose chat template opens a tag, as DeepSeek-R1's."""
    return made(chat_template=CHAT + "{% if add_generation_prompt %}" + opened + "{% endif %}")


@pytest.mark.parametrize("form", [{}, {"prefill": "<think>"}, {"prefill": "<think>\n"}])
@pytest.mark.parametrize("opened", ["<think>", "<think>\n"])
@pytest.mark.parametrize("solution", ["<think>\nWell.</think>2", "<think>Well.</think>2"])
def test_a_tag_that_the_template_opens_is_written_once(solution, opened, form):
    tokenizer = thinking(opened)
    prompts = PromptForm(chat=True, separator="\n", **form).prompts([Problem("p", "1+1", "2", solution)], tokenizer)
    (completion,) = TraceSampler(tokenizer, separator="\n").sample(prompts, 1, Sampling(99), (0, 0))
    whole = tokenizer.decode([*prompts[0].ids, *completion.ids])
    assert whole.count("<think>") == 1
    assert whole.replace("\n", "") == "[user]1+1<end of turn>[assistant]<think>Well.</think>2<eos>"
    assert tokenizer.decode(prompts[0].ids).endswith("]" + prompts[0].prefill)
    assert "\n\n" not in whole


@pytest.mark.parametrize(
    ("prefill", "begun"),
    [
        (None, "<think>\n"),
        ("<think>", "<think>\n"),
        ("<think>\n", "<think>\n"),
        ("Well", "<think>\nWell"),
        ("<think>Well", "<think>\nWell"),
        ("<think>\nWell", "<think>\nWell"),
    ],
)
def test_a_tag_that_the_template_opens_begins_the_answer(prefill, begun):
    tokenizer = thinking("<think>\n")
    (prompt,) = PromptForm(chat=True, prefill=prefill).prompts([ASKED], tokenizer)
    assert tokenizer.decode(prompt.ids) == f"[user]{ASKED.prompt}<end of turn>[assistant]{begun}"
    assert prompt.prefill == begun
    evaluator = Evaluator(sampler=None, rewards={}, tokenizer=tokenizer, greedy=Sampling(9, 0.0))
    written = tokenizer("</think><answer>2</answer>").input_ids
    (text,) = evaluator.texts([prompt], [Completion(written, None, truncated=True)])
    assert text == begun + "</think><answer>2</answer>"
    pattern = composed("reward=format").reward.pattern
    assert FormatReward(pattern)([ASKED], [text]).rewards == [1]


def test_a_solution_without_the_tag_stands_behind_it_as_before():
    tokenizer = thinking("<think>")
    (prompt,) = PromptForm(chat=True, separator="\n").prompts([ASKED], tokenizer)
    (completion,) = TraceSampler(tokenizer, separator="\n").sample([prompt], 1, Sampling(99), (0, 0))
    assert tokenizer.decode(completion.ids) == "So.\nA:2<eos>"


@pytest.mark.parametrize(("eos", "ends"), [({EOS}, EOS), ({EOS, END}, END), (set(), EOS)])
def test_a_solution_in_a_chat_ends_as_the_models_turns_do(eos, ends):
    """Gemma's turns end with a token of their own, which ends a completion as EOS does."""
    tokenizer = made(chat_template=CHAT)
    form = PromptForm(chat=True, eos_ids=frozenset(eos))
    prompts = form.prompts([Problem("p", "1+1", "2", "2.")], tokenizer)
    (completion,) = TraceSampler(tokenizer).sample(prompts, 1, Sampling(99), (0, 0))
    assert completion.ids[-1] == ends
    assert tokenizer.decode(completion.ids[:-1]) == "2."


@pytest.mark.parametrize(
    ("form", "trained_on"),
    [
        ({"chat": True}, "So.\nA:2<eos>"),  # the answer is a turn of its own
        ({"chat": True, "prefill": "Well"}, "\nSo.\nA:2<eos>"),
        ({}, "\nSo.\nA:2<eos>"),
        ({"text": "{prompt}\nAnswer: "}, "So.\nA:2<eos>"),
        ({"prefill": "Answer: "}, "So.\nA:2<eos>"),
    ],
)
def test_a_written_solution_stands_behind_the_same_prompt(form, trained_on):
    prompt, tokenizer = made_of(PromptForm(**form, separator="\n"))
    (completion,) = TraceSampler(tokenizer, separator="\n").sample([prompt], 1, Sampling(99), (0, 0))
    assert tokenizer.decode(completion.ids) == trained_on


def test_rewards_and_records_see_the_prefill():
    prompts = [made_of(PromptForm(chat=chat, prefill="<think>"))[0] for chat in (True, False)]
    tokenizer = made()
    evaluator = Evaluator(sampler=None, rewards={}, tokenizer=tokenizer, greedy=Sampling(9, 0.0))
    ids = tuple(tokenizer("so</think>2").input_ids)
    assert evaluator.texts(prompts, [Completion(ids, None, truncated=True)] * 4) == ["<think>so</think>2"] * 4
