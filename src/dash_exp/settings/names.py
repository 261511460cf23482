"""Whether every setting has a name that the program reads: a key with a typing error would leave the default in place.

Hydra refuses an unknown name on the command line, but takes any key from a file (`-cd`, `-cn`, an own option in conf/) or with
`+`. What a part (`_target_`) takes is not listed here but in `targets`, and what a check of the watch takes in `watching`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches

from omegaconf import DictConfig, OmegaConf

from dash_exp.core.errors import UserError

OWN = "own"  # the section for settings of the user's own, whatever their names

# By section: its settings. Sections that are not listed take any, as model.architecture, or are parts.
NAMES = {
    "": "name steps seed eval model optimizer schedule clip_norm watch budget objective study completions_every table_rows "
    "checkpoints resume resume_every plan plan_device plan_tokens algo batch data filter kl logger prompt reward rollout "
    "select teacher trainer own",
    "batch": "prompts group_size sample_prompts epochs minibatches micro_tokens",
    "algo": "name group_size advantage loss weighting denominator train_sampler",
    "budget": "seconds sampled_tokens optimizer_steps match",
    "data": "name path test_path math500_path gsm8k_path subset train_split test_split prompt answer solution extra optional "
    "id task options tasks separator limit max_response_tokens max_prompt_tokens train tests",
    "eval": "every prompts n k temperature top_p limit",
    "kl": "coef estimator place schedule",
    "logger": "wandb tensorboard mlflow trackio",
    "model": "name path tokenizer architecture dtype compute_dtype attn_implementation gradient_checkpointing "
    "trust_remote_code lr micro_tokens master_weights instruct adapter lora",
    "model.lora": "r alpha dropout target_modules lr",
    "rollout": "temperature max_response_tokens truncated truncated_penalty staleness refresh_every importance_cap "
    "mismatch_limit memory_gb sampler",
    "study": "question baseline target claims paper smollm2 scale",
    "study.smollm2": "steps every n k limit",
    "study.paper": "data models steps every n k table methods note",
    "teacher": "name path tokenizer template chat temperature max_tokens tries seed file",
}
ALL = [f"{section}.{name}".lstrip(".") for section, names in NAMES.items() for name in names.split()]


def check(cfg: DictConfig) -> None:
    """Raise UserError for the first key that is neither listed nor referred to, as `${data.folder}` refers to data.folder."""
    referred_to = set(_references(OmegaConf.to_container(cfg, resolve=False)))
    for section, names in NAMES.items():
        settings = OmegaConf.select(cfg, section) if section else cfg
        if not isinstance(settings, DictConfig) or "_target_" in settings:
            continue
        for name in map(str, settings):
            key = f"{section}.{name}".lstrip(".")
            if name not in names.split() and key not in referred_to:
                raise UserError(key, "there is no such setting", _advice(key))


def _advice(key: str) -> str:
    section, _, name = key.rpartition(".")
    if section == name:
        return f"Write what is below {name} alone in a file of conf/{name}, or `# @package _global_` as its first line"
    close = nearest(key)
    return (f"Did you mean {close}? " if close else "") + f"A setting of your own is {OWN}.{name}"


def nearest(key: str) -> str | None:
    """The setting that was most likely meant: written nearly so in the same section, or of this name elsewhere; None where
    there is none.
    """
    section, _, name = key.rpartition(".")
    names = [*NAMES.get(section, "").split(), *([] if section else ["defaults"])]
    close = get_close_matches(name, names, n=1, cutoff=0.7) or [known for known in names if name.startswith(known)]
    if close:
        return f"{section}.{close[0]}".lstrip(".")
    return next((known for known in ALL if known.rpartition(".")[2] == name and known != key), None)


def _references(tree: object) -> Iterator[str]:
    """The names in `${...}`, also those inside a call such as `${oc.select:own.n,4}`."""
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _references(value)
    elif isinstance(tree, str) and "${" in tree:
        yield from re.findall(r"(?<![\w.-])[\w-]+(?:\.[\w-]+)*", tree)
