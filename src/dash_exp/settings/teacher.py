"""The teacher that writes traces for algo=sft_m."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from dash_exp.core.errors import UserError
from dash_exp.settings.checks import flags, number, numbers, texts

SECTIONS = "teacher"
# Where the settings are written, and where a run reads them: by default the second are the first.
PLACES = ("teacher", "algo.train_sampler.teacher")


def values(cfg: DictConfig) -> None:
    texts(cfg, "teacher.file")
    for place in PLACES:
        texts(cfg, f"{place}.path {place}.tokenizer")
        if OmegaConf.select(cfg, f"{place}.template", default="") is not None:  # null: the prompts of the run
            texts(cfg, f"{place}.template", lines=True)
        flags(cfg, f"{place}.chat")
        numbers(cfg, f"{place}.tries {place}.max_tokens", whole=True, least=1)
        number(cfg, f"{place}.seed", whole=True, least=0)
        number(cfg, f"{place}.temperature", least=0)


def relations(cfg: DictConfig) -> None:
    teacher = OmegaConf.select(cfg, PLACES[1])
    if teacher is None:
        return
    if teacher.template is None:
        _is_asked_as_policy(cfg, teacher)
    elif "{prompt}" not in teacher.template:
        raise UserError(f"teacher.template={teacher.template}", "has no place for the problem", "Put {prompt} into it")
    if teacher.temperature == 0 and teacher.tries > 1:
        raise UserError(
            f"teacher.tries={teacher.tries}",
            "makes no difference at temperature 0, where every try gives the same trace",
            "Use teacher.tries=1, or a teacher.temperature above 0",
        )


def _is_asked_as_policy(cfg: DictConfig, teacher: DictConfig) -> None:
    if cfg.model.architecture and teacher.path == cfg.model.path:
        wrong = f"the policy starts from random weights, and a teacher from those of {teacher.path}"
        raise UserError("teacher.template=null", wrong, "Choose another model or teacher")
    if teacher.chat:
        right = "Use teacher.chat=false; prompt=chat decides it"
        raise UserError("teacher.chat=true", "has no effect where teacher.template is null", right)
