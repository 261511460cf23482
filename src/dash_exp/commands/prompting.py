"""Problems as prompts: how a run asks its model, the token ids that come of it, and the first of them for people to read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dash_exp.commands.parts import made
from dash_exp.core.types import Problem, Prompt
from dash_exp.data.prompt_form import PromptForm
from dash_exp.data.prompts import tokenized
from dash_exp.models import loading
from dash_exp.models.chat import is_instruct
from dash_exp.settings.data import response_limit

SHOWN = 2000  # most characters of a prompt that are printed

log = logging.getLogger(__name__)


def prompts(
    cfg: DictConfig,
    train: Sequence[Problem],
    tests: Mapping[str, Sequence[Problem]],
    tokenizer: PreTrainedTokenizerBase,
    policy: PreTrainedModel,
) -> tuple[list[Prompt], dict[str, list[Prompt]]]:
    """The problems as the policy reads them. A test set is never cut by length: its accuracy would be another one."""
    read = reader(cfg, train, tokenizer, policy)
    return (
        read(train, where="data.train", limit=cfg.data.max_prompt_tokens),
        {name: read(test, where=f"data.tests.{name}") for name, test in tests.items()},
    )


def reader(
    cfg: DictConfig, train: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, policy: PreTrainedModel
) -> Callable[..., list[Prompt]]:
    """`tokenized` for this run: problems of a setting to prompts. Worked examples are of `train`."""
    context = loading.context_length(policy, cfg.rollout.sampler.get("max_model_len"))
    form = form_of(cfg, tokenizer, loading.eos_ids(policy, tokenizer))

    def read(problems: Sequence[Problem], where: str, limit: int | None = None) -> list[Prompt]:
        limited_by, most = response_limit(cfg, where)
        return tokenized(problems, tokenizer, context, most, where, limit, form, train, limited_by)

    return read


def shows_examples(cfg: DictConfig) -> bool:
    """Whether prompts have worked examples, for which the training problems are needed."""
    return bool(OmegaConf.select(cfg, "prompt.few_shot"))


def stop(cfg: DictConfig) -> tuple[str, ...]:
    """The texts that end a completion. Runs of an earlier version have none."""
    return tuple(OmegaConf.select(cfg, "prompt.stop") or ())


def form_of(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int]) -> PromptForm:
    """How this run asks this model, which ends completions with `eos_ids`; by a chat or not is decided here.

    A run of an earlier version has no such settings: it gave the problem's text alone.
    """
    form = made(cfg, "prompt", _convert_="all") if "prompt" in cfg else PromptForm()
    found = is_instruct(tokenizer, eos_ids)
    instruct = found if cfg.model.get("instruct", "auto") == "auto" else cfg.model.instruct
    form = replace(form, chat=instruct if form.chat == "auto" else form.chat, eos_ids=eos_ids)
    if (found or instruct) and not form.chat:
        log.warning("the model is an instruct model, and its prompts are text without its chat template; prompt=chat uses it")
    return form


def shown(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """A prompt exactly as the model gets it, special tokens included, as a block of lines; a long one without its middle."""
    text = str(tokenizer.decode(list(prompt.ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if len(text) > SHOWN:
        half = SHOWN // 2
        text = f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
    lines = "\n".join(f"  | {line}" for line in text.split("\n"))
    return f"the first prompt, {len(prompt.ids):,} tokens, as the model gets it:\n{lines}"
