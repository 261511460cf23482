"""The names of settings: what a file of the user's own may have, and what is a typing error."""

import pytest
import yaml
from conftest import CONF, composed
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from refusals import assert_each_is_met, assert_refused, refusal_of

from dash_exp.settings import names
from dash_exp.settings.validate import validate

OF_SWEEPS = ("study.paper", "study.smollm2")  # sections that only the files of sweeps have
STEPS = "stepz: there is no such setting. Did you mean steps? A setting of your own is own.stepz"
BAD = [
    ({"stepz": 3}, STEPS),
    ({"batch": {"promts": 3}}, "batch.promts: there is no such setting. Did you mean batch.prompts?"),
    ({"group_size": 3}, "group_size: there is no such setting. Did you mean batch.group_size?"),
    ({"batches": {"prompts": 3}}, "batches: there is no such setting. Did you mean batch?"),
    ({"study": {"paper": {"stepz": 3}}}, "study.paper.stepz: there is no such setting. Did you mean study.paper.steps?"),
    ({"model": {"lora": {"rank": 3}}}, "model.lora.rank: there is no such setting. Did you mean model.lora.r?"),
    ({"kl": {"schedule": {"finale": 3}}}, "kl.schedule.finale: dash_exp.algorithms.kl.Constant has no such setting"),
    (
        {"data": {"train": {"sise": 3}}},
        "data.train.sise: dash_exp.data.arithmetic.generate has no such setting.",
    ),
    ({"watch": {"kl_blowup": {"abov": 3}}}, "watch.kl_blowup.abov: there is no such setting"),
    ({"trainer": {"acelerator": "gpu"}}, "trainer.acelerator: cannot be used"),
    ({"default": ["config"]}, "default: there is no such setting. Did you mean defaults?"),
    ({"algo": {"algo": {"name": "x"}}}, "algo.algo: there is no such setting. Write what is below algo alone in a file of"),
    ({"kl": {"kl": {"coef": 1}}}, "kl.kl: there is no such setting. Write what is below kl alone in a file of conf/kl, or `#"),
    ({"zzz": 1}, "zzz: there is no such setting. A setting of your own is own.zzz"),
    ({"lr": 1, "name": "${model.${model.adapter}.lr} of it"}, "lr: there is no such setting. Did you mean model.lr?"),
]


def with_file(settings: dict) -> DictConfig:
    """As `-cd` and `-cn` have it: the keys of the user's file are merged, whatever they are."""
    cfg = composed()
    OmegaConf.set_struct(cfg, False)
    return OmegaConf.merge(cfg, settings)


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[str(settings) for settings, _ in BAD])
def test_a_typing_error_in_a_file_is_refused_with_the_nearest_name(settings, message):
    assert_refused(refusal_of(with_file(settings)), message)


def test_every_refusal_has_a_case():
    assert_each_is_met(names, [refusal_of(with_file(BAD[0][0]))])


GOOD = [
    {"own": {"note": "third try", "n": {"deep": 4}}},
    {"data": {"folder": "x", "tests": {"of_mine": {"_target_": "json.loads"}}}, "name": "${data.folder}"},
    {"x": {"y": 4}, "batch": {"prompts": "${oc.select:x,64}"}},
    {"algo": {"advantage": {"_target_": "my_module.advantage", "scale": 3}}},
    {"optimizer": {"momentum": 0.9, "_target_": "torch.optim.SGD"}},
    {"model": {"architecture": {"model_type": "qwen2", "whatever": 3}}},
]


@pytest.mark.parametrize("settings", GOOD, ids=str)
def test_settings_of_ones_own_pass(settings):
    names.check(with_file(settings))


def test_a_key_that_is_added_on_the_command_line_is_no_exception():
    assert_refused(refusal_of(composed("+batch.promts=3")), "Did you mean batch.prompts?")
    validate(composed("+own.note=3"))


def test_an_option_file_of_ones_own_is_read_as_carefully(tmp_path):
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "mine.yaml").write_text("# @package _global_\ndefaults: [dash]\nalgo: {name: mine, grup_size: 4}\n")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[f"hydra.searchpath=[file://{tmp_path}]", "algo=mine"])
    assert_refused(refusal_of(cfg), "algo.grup_size: there is no such setting. Did you mean algo.group_size?")


def test_every_setting_of_conf_is_known_and_every_known_one_is_there():
    """In step with conf/: a setting that is added there is added to `names`, and one that is removed is removed."""
    there = set()
    for file in CONF.rglob("*.yaml"):
        if "hydra" in file.parts:
            continue
        text = yaml.safe_load(file.read_text())
        group = "" if "@package _global_" in file.read_text() or file.parent == CONF else file.parent.name
        there |= set(keys(text, "" if group == "experiment" else group))
        there.add(file.parent.name)
    for section, known in names.NAMES.items():
        if section in OF_SWEEPS:
            continue
        found = {key.rpartition(".")[2] for key in there if key.rpartition(".")[0] == section}
        extra = {"defaults", "hydra", "conf", "experiment", "scale", "test", "own"} if section == "" else {"defaults"}
        assert found - extra == set(known.split()) - {"own"}, section


def test_no_section_is_passed_over():
    sections = [
        key for key in keys(OmegaConf.to_container(composed()), "") if isinstance(OmegaConf.select(composed(), key), DictConfig)
    ]
    plain = {key for key in sections if "_target_" not in OmegaConf.select(composed(), key)}
    elsewhere = {"data.tests", *(key for key in plain if key.startswith("watch"))}  # any name; `watching`
    assert plain - elsewhere == {section for section in names.NAMES if section not in ("", *OF_SWEEPS)}


def keys(tree: object, prefix: str) -> list[str]:
    if not isinstance(tree, dict) or "_target_" in tree:
        return []
    dotted = {key: f"{prefix}.{key}".lstrip(".") for key in tree}
    return [*dotted.values(), *(name for key, value in tree.items() for name in keys(value, dotted[key]))]
