"""The generation configuration of a model: it names the tokens that end a completion, and is written with the weights.

Transformers reads nearly anything, and refuses to write what makes no sense: with it, it would refuse the weights.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from dash_exp.core.errors import UserError
from dash_exp.core.words import first_line

FILE = "generation_config.json"


def check(model: PreTrainedModel, where: str) -> None:
    """Raise UserError, for the setting `where`, for end-of-sequence ids that are no ids of tokens, and for what cannot be
    written.

    A temperature or top-p without `do_sample`, which many models have and Transformers does not write, gets it.
    """
    config = model.generation_config
    if config is None:
        return
    ids = config.eos_token_id
    for i in ids if isinstance(ids, list) else [ids]:
        if i is not None and not (type(i) is int and i >= 0):
            wrong = f"eos_token_id={ids!r} in its generation configuration ({FILE}) is no id of a token"
            raise UserError(where, wrong, "Write a whole number of at least 0, or a list of them")
    if _refusal(model) is None:
        return
    before, config.do_sample = config.do_sample, True
    if refusal := _refusal(model):
        config.do_sample = before
        raise UserError(
            where, f"Transformers cannot write its generation configuration ({refusal})", f"Take that setting out of {FILE}"
        )


def _refusal(model: PreTrainedModel) -> str | None:
    """Why Transformers does not write the generation configuration; None where it does."""
    assert model.generation_config is not None
    try:
        model.generation_config.validate(strict=True)
        model.generation_config.to_json_string()
    except (ValueError, TypeError, AttributeError) as error:  # the latter two for a value of another type
        lines = [line for line in str(error).splitlines() if line.startswith("- ")]
        return lines[0].removeprefix("- ") if lines else first_line(str(error))
    return None
