"""Parts that the training loop cannot use: one message, which names the part, before anything is loaded."""

import own_parts
import pytest
import torch
from conftest import composed
from omegaconf import OmegaConf
from refusals import refusal, refusal_of

from dash_exp.commands import build, parts, rehearsal
from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.rewards.base import Scores

NO_ADAM = "~optimizer.betas ~optimizer.fused"
NO_LINEAR = "~schedule.name ~schedule.num_warmup_steps ~schedule.num_training_steps"
LR = "torch.optim.lr_scheduler"

BAD = [
    # optimizers
    (
        "optimizer._target_=torch.optim.LBFGS",
        "optimizer._target_=torch.optim.LBFGS: its step() needs closure, which this training loop does not give. Use another",
    ),
    (
        "optimizer._target_=torch.optim.SparseAdam ~optimizer.fused ~optimizer.weight_decay",
        "optimizer._target_=torch.optim.SparseAdam: does not work in this training loop (SparseAdam does not support dense",
    ),
    (f"optimizer._target_=torch.optim.Muon {NO_ADAM}", "Muon only supports 2D parameters"),
    ("+optimizer.foreach=true", "`fused` and `foreach` cannot be `True` together"),
    ("+optimizer.capturable=true optimizer.fused=false", "params and state_steps must be on supported devices"),
    ("optimizer._partial_=false", "optimizer.params: is missing: torch.optim.AdamW needs it. Add +optimizer._partial_=true"),
    (
        "optimizer._target_=torch.optim.AdamX",
        "there is no AdamX in torch.optim. Use torch.optim.Adam",
    ),
    ("+optimizer.amsgrd=true", "optimizer.amsgrd: torch.optim.AdamW has no such setting. Write amsgrad."),
    ("+optimizer.amsgrd=true +optimizer.zz=1", "optimizer.amsgrd, optimizer.zz: torch.optim.AdamW has no such setting. Write"),
    ("+optimizer.zz=1 +optimizer.zzz=1", "; ~optimizer.zz ~optimizer.zzz removes them."),
    ("optimizer._target_=own_parts.nothing", "it gives a NoneType and not an optimizer"),
    # schedules
    (f"schedule._target_={LR}.ReduceLROnPlateau", "ReduceLROnPlateau: its step() needs metrics, which this"),
    ("schedule.name=reduce_lr_on_plateau", "schedule._target_=transformers.get_scheduler: its step() needs metrics"),
    (f"schedule._target_={LR}.StepLR {NO_LINEAR}", "missing 1 required positional argument: 'step_size'"),
    (f"schedule._target_={LR}.StepLR +schedule.step_size=0 {NO_LINEAR}", "integer modulo by zero"),
    (f"schedule._target_={LR}.OneCycleLR +schedule.max_lr=1 +schedule.total_steps=9 {NO_LINEAR}", "Tried to step 10 times"),
    (f"schedule._target_={LR}.ExponentialLR +schedule.gamma=-1 {NO_LINEAR}", "the learning rate of outer step 2 is -"),
    ("schedule._target_=own_parts.text", "schedule._target_=own_parts.text"),
    # the algorithm
    (
        "algo.advantage._target_=own_parts.other_arguments",
        "does not work as an advantage (other_arguments() missing 4",
    ),
    ("algo.advantage._target_=own_parts.total", "it gives the shape () where (4, 8) is wanted"),
    ("algo.advantage._target_=own_parts.by_reward", "gives NaN or infinite advantages for rewards of 0 and 1"),
    (
        "algo.advantage._target_=own_parts.by_distance",
        "gives NaN or infinite advantages for a group whose rewards are all equal",
    ),
    (
        "algo.advantage._target_=own_parts.by_deviation",
        "gives NaN or infinite advantages for a group whose rewards are all equal, and there will be such groups. Return 0 for",
    ),
    ("algo.advantage._target_=own_parts.nothing", "it gives a NoneType and not a tensor"),
    ("filter={_target_:own_parts.nothing,_partial_:true}", "filter._target_=own_parts.nothing: does not work as a filter"),
    ("filter={_target_:own_parts.no_booleans,_partial_:true}", "it gives torch.float64 and not a mask of booleans"),
    ("algo.advantage._target_=own_parts.in_place", "it writes into its arguments"),
    ("filter={_target_:own_parts.filter_in_place,_partial_:true}", "it writes into its arguments"),
    ("algo.loss._target_=own_parts.other_arguments", "algo.loss._target_=own_parts.other_arguments: does not work as a loss"),
    ("algo.loss._target_=own_parts.text", "it gives a str and not a TokenLoss"),
    ("algo.loss._target_=own_parts.without_gradient", "it has no gradient"),
    (
        "algo.weighting._target_=own_parts.total",
        "does not work as a weighting (it gives the shape ()",
    ),
    ("algo.denominator._target_=own_parts.text", "it gives a str and not a number"),
    ("algo.denominator._target_=dash_exp.algorithms.weighting.per_sampled_length", "'max_tokens'"),
    ("kl.schedule._target_=own_parts.nothing", "kl.schedule._target_=own_parts.nothing: does not work as a schedule of the KL"),
    # the rule that selects prompts
    ("select=screen select._target_=own_parts.nothing", "select._target_=own_parts.nothing: does not work as a selection of"),
    # names
    (
        "algo.advantage._target_=own_parts.totl",
        "there is no totl in own_parts. Use own_parts.total.",
    ),
    ("reward._target_=own_parts.inner.typo", "reward._target_=own_parts.inner.typo: there is no inner in own_parts"),
    ("reward._target_=own_parts.NOT_CALLABLE", "reward._target_=own_parts.NOT_CALLABLE: is not a function or class"),
    (
        "reward._target_=own_parts.one_for_all",
        "reward.pattern, reward.timeout_s: own_parts.one_for_all has no such setting. It has",
    ),
]


def refused(overrides: str) -> UserError | None:
    """`composed` reads `filter={...}` as a choice of a file: it is set here."""
    if not overrides.startswith("filter={"):
        return refusal(overrides)
    cfg = composed()
    cfg.filter = {"_target_": overrides.partition("_target_:")[2].partition(",")[0], "_partial_": True}
    return refusal_of(cfg)


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[bad for bad, _ in BAD])
def test_parts_that_do_not_do_their_work(bad, message):
    error = refused(bad)
    assert error is not None
    assert message in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "good",
    [
        "model.dtype=bfloat16",
        "model.dtype=bfloat16 model.master_weights=false",
        "model.adapter=lora",
        "optimizer._target_=torch.optim.SGD ~optimizer.betas",
        f"optimizer._target_=torch.optim.Adafactor {NO_ADAM}",
        "optimizer.fused=false +optimizer.foreach=true",
        f"schedule._target_={LR}.StepLR +schedule.step_size=2 {NO_LINEAR}",
        "algo=sft_h data=gsm8k data.path=x",
        "algo=reinforce batch.group_size=1",
        "kl=adaptive",
    ],
)
def test_parts_that_do(good):
    assert refused(good) is None


REWARDS = [
    ("other_arguments", "does not work as a reward (other_arguments() missing 3 required"),
    ("texts", "it gives a list and not Scores"),
    ("one_for_all", "rewards: 1 for 8 texts"),
    ("words", "must be real number, not str"),
    ("needs_a_text", "string index out of range; own_parts.py, line "),
]


@pytest.mark.parametrize(("name", "message"), REWARDS)
def test_rewards_that_do_not_do_their_work(name, message):
    """With the problems that the run has: the reward is not called before they are read."""
    cfg = composed("data.tests.in_dist.size=2", "data.tests.out_dist.size=2", "data.train.size=4")
    cfg.reward = {"_target_": f"own_parts.{name}", "_partial_": True}
    with pytest.raises(UserError) as error:
        build.build(cfg)
    assert str(error.value).startswith(f"reward._target_=own_parts.{name}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("points", "said"), [(1.0, ""), (2.0, "reward: a right answer earns 2, but accuracy counts a reward of exactly 1")]
)
def test_a_right_answer_that_earns_more_than_1(points, said, caplog):
    def reward(problems, texts):
        return Scores([points * (p.answer == text) for p, text in zip(problems, texts, strict=True)])

    rehearsal.reward(reward, Problem("p", "1+1=", "2"), 4, "reward")
    assert said in caplog.text if said else not caplog.text


def test_a_reward_may_compare_the_completions_of_a_group():
    for group_size in (1, 8):
        rehearsal.reward(own_parts.longest_is_best, Problem("p", "1+1=", "2"), group_size, "reward")


DATA = [
    ("nothing", "data.train._target_=own_parts.nothing: does not work as a data set ('NoneType' object is not iterable)"),
    ("texts", "data.train._target_=own_parts.texts: does not work as a data set (it gives a str and not a Problem)"),
]


@pytest.mark.parametrize(("name", "message"), DATA)
def test_data_sets_that_are_none(name, message):
    cfg = composed("data.tests.in_dist.size=2", "data.tests.out_dist.size=2")
    cfg.data.train = {"_target_": f"own_parts.{name}"}
    with pytest.raises(UserError) as error:
        build.build(cfg)
    assert message in str(error.value)


def test_a_module_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "broken_parts.py").write_text("import nothing_of_that_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = "the module broken_parts cannot be imported (ModuleNotFoundError: No module named 'nothing_of_that_name')"
    assert message in str(refused("reward._target_=broken_parts.reward"))


def test_an_error_inside_a_part_keeps_its_own_message():
    """That of the inner part, and not of the sum around it."""
    cfg = composed("reward=math_format", "reward.parts.format.pattern='('")
    with pytest.raises(UserError, match=r"reward\.pattern=\(: is not a regular expression"):
        parts.made(cfg, "reward")
    cfg = composed("reward=math_format")
    OmegaConf.set_struct(cfg, False)
    cfg.reward.parts.mine = {"_target_": "own_parts.other_arguments"}
    with pytest.raises(UserError, match=r"^reward\.parts\.mine: cannot be made \(other_arguments\(\) missing"):
        parts.made(cfg, "reward")


def test_a_full_disk_stays_a_full_disk():
    with pytest.raises(OSError, match="No space"), parts.refusing("x", "y", "z"):
        raise OSError(28, "No space left on device")


def test_random_numbers_of_the_run_are_those_without_a_rehearsal():
    torch.manual_seed(3)
    build.check_parts(composed())
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
