"""How the model is asked. Runs of an earlier version have no such settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig

from dash_exp.core.errors import UserError
from dash_exp.settings.checks import known, number, sections, shown, texts

SECTIONS = ""
FORM = "dash_exp.data.prompt_form.PromptForm"
GIVEN = ("conversation", "tokenize", "add_generation_prompt", "continue_final_message")  # to the chat template, by the run


def values(cfg: DictConfig) -> None:
    form = cfg.get("prompt")
    if form is None:
        return
    sections(cfg, "prompt")
    known(cfg, "prompt._target_", [FORM])
    texts(cfg, "prompt.text", lines=True)
    if "{prompt}" not in form.text:
        raise UserError(f"prompt.text={form.text!r}", "has no place for the problem", "Put {prompt} into it")
    known(cfg, "prompt.chat", ["auto", True, False])
    for key in ("system", "prefill", "separator"):
        if form.get(key) is not None:
            texts(cfg, f"prompt.{key}", lines=True)
    number(cfg, "prompt.few_shot", whole=True, least=0)
    number(cfg, "prompt.seed", whole=True, least=0)
    stop = form.stop
    if not isinstance(stop, ListConfig) or not all(isinstance(text, str) and text for text in stop):
        raise UserError(
            f"prompt.stop={shown(stop)}", "is not a list of texts", "Write one, as in \"prompt.stop=['</answer>']\""
        )
    sections(cfg, "prompt.options")
    if taken := next((name for name in GIVEN if name in form.options), None):
        raise UserError(f"prompt.options.{taken}", "is given by the run itself", "Leave it out")


def relations(cfg: DictConfig) -> None:
    form = cfg.get("prompt")
    if form is not None and form.get("few_shot") and cfg.data.get("train") is None:
        raise UserError(
            f"prompt.few_shot={form.few_shot}", "shows training problems, and data.train is null", "Write prompt.few_shot=0"
        )


def may_be_chat(form: Mapping[str, Any] | DictConfig, model: Mapping[str, Any] | DictConfig) -> bool:
    """Whether the sections `prompt` and `model` have the model asked in its chat template, or leave it to the tokenizer."""
    chat = form.get("chat")
    return model.get("instruct") is not False if chat == "auto" else chat is not False
