"""Settings as a whole: sections and references, and what conf/ allows in addition to its own settings."""

import pytest
from conftest import composed
from omegaconf import OmegaConf
from refusals import assert_each_is_met, assert_refused, refusal

from dash_exp.commands import build
from dash_exp.settings import validate

BAD = [
    ("optimizer.lr=${nothing}", "Interpolation key 'nothing' not found"),
    ("optimizer.lr=${model.nothing}", "optimizer.lr: Interpolation key 'model.nothing' not found. Fix the reference"),
    ("data=jsonl", "data.path: is not given. Add data.path=... to the command"),
    ("budget=null", "budget=null: is not a section of settings. Leave it as in conf/"),
    ("data.tests=3", "data.tests=3: is not a section of settings"),
    ("eval=null", "eval=null: is not a section of settings"),
    ("algo.advantage=my_file.mine", "is not a section of settings. Write algo.advantage._target_=my_file.mine"),
    ("algo.loss=null", "algo.loss=null: is not a section of settings"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_bad_settings_are_refused_by_name(bad, message):
    assert_refused(refusal(bad), message)


def test_every_refusal_has_a_case():
    assert_each_is_met(validate, [refusal(bad) for bad, _ in BAD])


def test_every_subject_is_asked():
    """The modules with `values` and with `relations` are those that `validate` goes through."""
    there = [module for module in vars(validate).values() if hasattr(module, "values") and hasattr(module, "SECTIONS")]
    assert set(validate.SUBJECTS) == set(there)
    assert set(validate.RELATED) == {module for module in there if hasattr(module, "relations")}


def test_what_conf_allows_in_addition_to_its_own_settings():
    """Extensions of one's own pass: other modules' parts, further trainer settings, a key file's name in the environment."""
    cfg = composed(
        "+trainer.deterministic=true",
        "rollout.sampler._target_=types.SimpleNamespace",
        "optimizer._target_=torch.optim.RMSprop",
        "~optimizer.betas",
        "~optimizer.fused",
        "eval.k=[]",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEY_FILE", str(cfg.model.path))
        validate.validate(cfg)
    build.check_parts(cfg)


def test_settings_are_left_as_they_were():
    cfg = composed()
    before = OmegaConf.to_yaml(cfg)
    validate.validate(cfg)
    assert OmegaConf.to_yaml(cfg) == before
