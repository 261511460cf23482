"""How a run asks its model: chosen by itself, printed, and the same in its evaluation."""

import json
import re

import pytest
from conftest import LETTERS, SMALL, composed, program
from omegaconf import OmegaConf
from special_tokens import CHAT, END, EOS, made

from dash_exp.commands.prompting import form_of, shown
from dash_exp.core.types import Problem, Prompt
from dash_exp.models import loading

WARNS = "the model is an instruct model, and its prompts are text without its chat template; prompt=chat uses it"


@pytest.mark.parametrize(
    ("overrides", "ends", "in_chat", "warns"),
    [
        ("model.instruct=auto", END, True, False),  # found by the token that ends a turn
        ("model.instruct=auto", EOS, False, False),
        ("model.instruct=true", EOS, True, False),
        ("model.instruct=false", END, False, True),
        ("model.instruct=auto prompt=bare", END, False, True),
        ("model.instruct=true prompt=bare", EOS, False, True),
        ("model.instruct=false prompt=bare", EOS, False, False),
        ("model.instruct=false prompt=chat", EOS, True, False),
        ("model.instruct=auto prompt=boxed", END, True, False),
        ("model.instruct=auto prompt=think", EOS, False, False),
    ],
)
def test_instruct_models_choose_the_chat_by_themselves(overrides, ends, in_chat, warns, caplog):
    form = form_of(composed(*overrides.split()), made(chat_template=CHAT), frozenset([ends]))
    assert form.chat is in_chat
    assert [record.getMessage() for record in caplog.records] == [WARNS] * warns


def test_a_run_of_an_earlier_version_gave_the_text_alone():
    cfg = OmegaConf.create({"model": {"path": "x"}})
    assert form_of(cfg, made(), frozenset([EOS])).chat is False


def test_the_form_has_plain_values():
    form = form_of(composed("prompt=think"), made(), frozenset([EOS]))
    assert (form.stop, type(form.options)) == (["</answer>"], dict)


def test_the_first_prompt_is_shown_with_special_tokens():
    tokenizer = made()
    ids = tuple(tokenizer("<bos>[user]\n1+1<end of turn>\n").input_ids)
    said = shown(tokenizer, Prompt(Problem("p", "", ""), ids))
    assert said == f"the first prompt, {len(ids)} tokens, as the model gets it:\n  | <bos>[user]\n  | 1+1<end of turn>\n  | "
    long = shown(tokenizer, Prompt(Problem("p", "", ""), tuple(tokenizer("a" * 1500 + "b" * 1500).input_ids)))
    assert re.search(r"\n  \| a{1000} \[\.\.\. 1,000 characters \.\.\.\] b{1000}$", long)


@pytest.fixture
def folder(tmp_path):
    """The tokenizer of characters with a chat template."""
    tokenizer = loading.load_tokenizer(str(loading.ASSETS / "tiny"))
    tokenizer.chat_template = CHAT.replace("<end of turn>", "\\n")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


BLOCK = re.compile(r"the first prompt, \d+ tokens, as the model gets it:\n((?:  \| .*\n)+)")


def test_a_run_in_a_chat_and_its_evaluation(train, folder, tmp_path):
    """With a prefill in front of every completion, and a text that ends them."""
    asked = ["prompt=chat", "prompt.system=Add", "prompt.text='{x} {prompt}'", "prompt.prefill='a'", "prompt.stop=['c']"]
    done = train(*LETTERS, "eval.every=1", f"model.tokenizer={folder}", *asked, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    block = BLOCK.search(done.stdout)[1]
    assert re.fullmatch(r"  \| \[system\]Add\n  \| \[user\]\{x\} [-+*\d]+=\n  \| \[assistant\]a\n", block)
    rows = [json.loads(line) for line in (tmp_path / "run" / "completions" / "step_00002.jsonl").read_text().splitlines()]
    assert all(row["completion"].startswith("a") for row in rows)
    stopped = [row for row in rows if "c" in row["completion"]]
    assert stopped
    for row in stopped:
        assert (row["completion"].index("c"), row["truncated"]) == (len(row["completion"]) - 1, False)
    again = program(tmp_path, "dash_exp.evaluate", "run")
    assert again.returncode == 0, again.stderr
    assert re.fullmatch(
        r"  \| \[system\]Add\n  \| \[user\]\{x\} [-+*\d]+=\n  \| \[assistant\]a\n", BLOCK.search(again.stdout)[1]
    )
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for test in ("in_dist", "out_dist"):
        assert found["tests"][test]["accuracy"] == result[f"accuracy/{test}/final"]
        assert found["tests"][test]["length/mean_tokens"] == result[f"eval/{test}/length/mean_tokens/final"]
    assert found["settings"]["prompt"]["prefill"] == "a"


def test_worked_examples_in_an_evaluation(tmp_path):
    """Of the training split, which an evaluation loads for them alone."""
    few = ["data.tests.in_dist.size=4", "data.tests.out_dist=null", "data.train.size=50", "rollout.max_response_tokens=20"]
    tiny = str(loading.ASSETS / "tiny")
    done = program(
        tmp_path, "dash_exp.evaluate", tiny, *few, "prompt=few_shot", "prompt.text='Q:{prompt}'", "prompt.few_shot=2"
    )
    assert done.returncode == 0, done.stderr
    block = BLOCK.search(done.stdout)[1]
    assert re.fullmatch(r"(  \| Q:[-+*\d]+=.+A:-?\d+ *\n  \| \n){2}  \| Q:[-+*\d]+=\n", block), block


def test_without_a_chat_template_a_chat_is_refused(train, tmp_path):
    done = train(*SMALL, "prompt=chat")
    assert done.returncode == 1
    assert "error: prompt.chat: the tokenizer" in done.stderr
    assert "has no chat template. Write prompt=bare" in done.stderr
    assert "Traceback" not in done.stderr
