"""Builds the parts of a run from its configuration: data, reward, policy, sampler, the two halves of a step, the Trainer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import get_method, get_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dash_exp.algorithms.kl import Schedule
from dash_exp.algorithms.kl_penalty import Penalty, RewardPenalty
from dash_exp.commands import data_sets, prompting, rehearsal
from dash_exp.commands.parts import check_named, made, named
from dash_exp.commands.rewards import check_claims, rewards_of
from dash_exp.commands.samplers import colocated, sampler_of
from dash_exp.core.metrics import Clock
from dash_exp.core.watch import Watch
from dash_exp.data import digests
from dash_exp.distributed import strategies
from dash_exp.distributed.ranks import ALONE, Ranks
from dash_exp.evaluation.evaluator import Evaluator
from dash_exp.models import adapter, casting, folders, loading, packing, sharded
from dash_exp.models.optimizer import with_master_weights
from dash_exp.models.passes import Passes
from dash_exp.results.trackers import Tracker
from dash_exp.rewards.base import Reward, close_rewards
from dash_exp.sampling.base import Sampler, Sampling
from dash_exp.sampling.refresh import Refresh, copied
from dash_exp.settings.data import limits_of_tests
from dash_exp.settings.run import CHECKPOINTS
from dash_exp.training.module import PolicyModule
from dash_exp.training.objective import Objective, Optimization
from dash_exp.training.record import RunRecord
from dash_exp.training.rollout import RolloutDataModule, SamplingPlan
from dash_exp.training.scoring import Scoring, Truncated
from dash_exp.training.shares import FirstSampler, NoSampler, SharedPenalty, SharedReward, SharedSampler
from dash_exp.training.snapshot import Snapshots

MANY = 4096  # completions: several full batches of an engine, in one wait of the other ranks


@dataclass
class Parts:
    """What one run is made of. `reward`: of training. `digests`: of the problems (`data.digests`). `left_out`: training
    problems that a test has.
    """

    module: PolicyModule
    data: RolloutDataModule
    reward: Any
    tokenizer: Any
    clock: Clock
    digests: dict[str, str]
    left_out: int


def build(cfg: DictConfig, group: Ranks = ALONE, run_dir: Path = Path()) -> Parts:
    """Builds the parts of a run, from values and callables alone: none of them sees the configuration. `run_dir`: the folder of
    the run, for what sampling servers print that it starts.

    Of several ranks each does a share of sampling and grading with `rollout=hf`. Other samplers have devices of their own: the
    first rank uses them and grades, except that in evaluation each grades a share. They meet at the end.
    """
    if cfg.trainer.accelerator == "gpu":
        group.use_gpu()
    data_sets.check_trains(cfg)
    check_parts(cfg, group.local)
    if not cfg.model.architecture:
        folders.check_folder(cfg.model.path)
    clock = Clock()
    tokenizer = loading.load_tokenizer(cfg.model.tokenizer, trust_remote_code=cfg.model.trust_remote_code)
    train, tests, left_out = data_sets.problems(cfg)
    sets = {"data.train": train, **{f"data.tests.{name}": test for name, test in tests.items()}}
    shared = group.size > 1 and cfg.rollout.sampler._target_.endswith(".HFSampler")
    # Where the ranks do not share sampling, the first grades training alone, and uses all cores of its machine.
    rewards = rewards_of(cfg, sets, tokenizer, 1 if group.first and not shared else cfg.trainer.devices)
    check_claims(cfg, rewards["data.train"])
    given = {"tokenizer": tokenizer, "reward": rewards["data.train"]}
    train_sampler: Any = made(cfg, "algo.train_sampler", given) if cfg.algo.train_sampler else None
    if hasattr(train_sampler, "check"):
        train_sampler.check(train)
    policy = load_policy(cfg)
    own_device = loading.own_device(cfg.trainer.accelerator)
    packing.check_varlen(policy, own_device, getattr(torch, cfg.model.compute_dtype))
    loading.check_vocabulary(policy, tokenizer, None if cfg.model.architecture else cfg.model.path)
    train_prompts, test_prompts = prompting.prompts(cfg, train, tests, tokenizer, policy)
    if hasattr(train_sampler, "check_prompts"):
        train_sampler.check_prompts(train_prompts)
    watch = watch_of(cfg)
    passes = Passes(
        cfg.batch.micro_tokens, tokenizer.pad_token_id, cfg.rollout.temperature, getattr(torch, cfg.model.compute_dtype)
    )
    objective = objective_of(cfg)
    reference = None if objective.kl_coef.always_zero else loading.frozen_copy(policy)
    kl_in_reward = reference is not None and cfg.kl.place == "reward"
    if reference not in (None, policy) and (kl_in_reward or not is_sharded(cfg, group)):
        casting.keep_cast(reference, passes.compute_dtype)
    penalty: Penalty | None = None
    if reference is not None and kl_in_reward:
        if reference is not policy and (group.first or shared):  # it is not in the module, which Lightning moves
            torch.nn.Module.to(reference, own_device)
        penalty = RewardPenalty(reference, objective.kl, passes)
    sampler: Sampler = NoSampler()
    if group.first or shared:
        sampler = sampler_of(cfg, policy, tokenizer, run_dir)
    reward: Reward = rewards["data.train"]
    for_tests: Sampler = sampler
    if shared:
        sampler = for_tests = SharedSampler(sampler, group, policy)
        reward = SharedReward(reward, group)
        penalty = penalty and SharedPenalty(penalty, group)
    elif group.size > 1:
        for_tests = FirstSampler(sampler, group)
    try:
        sharded_for_servers = is_sharded(cfg, group) and not shared
        stale = cfg.rollout.staleness > 0 or cfg.rollout.refresh_every != 1
        weights = partial(weights_for_servers, policy, group, stale) if sharded_for_servers else None
        refresh = Refresh(policy, sampler, cfg.rollout.staleness, cfg.rollout.refresh_every, weights)
        data = RolloutDataModule(
            train=train_prompts,
            tests=test_prompts,
            plan=plan_of(cfg),
            refresh=refresh,
            train_sampler=train_sampler,
            scoring=scoring_of(cfg, reward, penalty, objective.kl_coef),
            evaluator=evaluator_of(cfg, for_tests, {n: rewards[f"data.tests.{n}"] for n in tests}, tokenizer, group),
            passes=passes,
            clock=clock,
            watch=watch,
            memory_gb=cfg.rollout.memory_gb,
            selection=made(cfg, "select"),
            ranks=ALONE if shared else group,
            shares_devices=colocated(cfg),
        )
        module = PolicyModule(
            policy=policy,
            reference=None if kl_in_reward else reference,
            refresh=refresh,
            objective=objective,
            optimization=optimization_of(cfg),
            passes=passes,
            clock=clock,
            test_names=list(tests),
            watch=watch,
            ranks=group,
            sharded=is_sharded(cfg, group),
        )
        meet(cfg, module, group)
        return Parts(module, data, rewards["data.train"], tokenizer, clock, digests.of_sets(train, tests), left_out)
    except BaseException:
        sampler.close()  # an engine holds a GPU's memory, and the next cell of a sweep wants it
        raise


def load_policy(cfg: DictConfig) -> PreTrainedModel:
    """The policy that is trained, with its adapter where it has one."""
    lora: Any = OmegaConf.to_container(cfg.model.lora) if cfg.model.adapter else None
    if lora is not None:
        del lora["lr"]  # the optimizer's
    return loading.load_policy(
        cfg.model.path,
        cfg.model.dtype,
        OmegaConf.to_container(cfg.model.architecture) if cfg.model.architecture else None,  # type: ignore[arg-type]
        cfg.model.gradient_checkpointing,
        cfg.model.attn_implementation,
        cfg.model.trust_remote_code,
        lora,
    )


def record_of(
    cfg: DictConfig, parts: Parts, run_dir: Path, snapshots: Snapshots, columns: Sequence[str] = (), writes: bool = True
) -> RunRecord:
    """What the run leaves behind. All ranks keep the same checkpoints, as each has a part in gathering weights."""
    kept, rows = cfg.get("checkpoints", CHECKPOINTS), snapshots.rows  # which settings of an earlier version do not have
    return RunRecord(run_dir, parts.tokenizer, cfg.completions_every, cfg.table_rows, columns, rows, writes, kept)


def watch_of(cfg: DictConfig) -> Watch:
    """The checks of the run. Rounding to 16 bits lets sampler and trainer differ more."""
    in_32_bits = cfg.model.compute_dtype == "float32" and cfg.model.dtype == "float32"
    mismatch_limit = cfg.rollout.mismatch_limit or (1e-4 if in_32_bits else 0.05)
    return Watch(OmegaConf.to_container(cfg.watch, resolve=True), mismatch_limit=mismatch_limit)  # type: ignore[arg-type]


def objective_of(cfg: DictConfig) -> Objective:
    """What an optimizer step minimizes."""
    return Objective(
        loss=made(cfg, "algo.loss"),
        kl_coef=made(cfg, "kl.schedule", {"coef": cfg.kl.coef, "steps": cfg.steps}),
        weighting=made(cfg, "algo.weighting"),
        denominator=made(cfg, "algo.denominator"),
        kl=get_method(f"dash_exp.algorithms.kl.{cfg.kl.estimator}"),
        importance_cap=importance_cap(cfg),
    )


def optimization_of(cfg: DictConfig) -> Optimization:
    """How it steps."""
    optimizer = made(cfg, "optimizer", _convert_="all")  # bitsandbytes keeps its settings in what a snapshot holds
    return Optimization(
        optimizer=with_master_weights(optimizer) if cfg.model.master_weights else optimizer,
        schedule=made(cfg, "schedule"),
        clip_norm=cfg.clip_norm,
        epochs=cfg.batch.epochs,
        minibatches=cfg.batch.minibatches,
        seed=cfg.seed,
    )


def plan_of(cfg: DictConfig) -> SamplingPlan:
    """What an outer step samples."""
    sampling = Sampling(cfg.rollout.max_response_tokens, cfg.rollout.temperature, stop=prompting.stop(cfg))
    return SamplingPlan(cfg.batch.prompts, cfg.algo.group_size, sampling, cfg.batch.sample_prompts, cfg.seed)


def scoring_of(cfg: DictConfig, reward: Reward, penalty: Penalty | None, kl_coef: Schedule) -> Scoring:
    """How completions become advantages and are filtered."""
    return Scoring(
        reward=reward,
        advantage=made(cfg, "algo.advantage"),
        keep=made(cfg, "filter"),
        truncated=Truncated(cfg.rollout.truncated, cfg.rollout.truncated_penalty),
        kl_penalty=penalty,
        kl_coef=kl_coef,
    )


def evaluator_of(
    cfg: DictConfig, sampler: Sampler, rewards: Mapping[str, Reward], tokenizer: PreTrainedTokenizerBase, ranks: Ranks = ALONE
) -> Evaluator:
    """How test problems are sampled, and graded by the `rewards` of the test sets."""
    max_tokens, stop = cfg.rollout.max_response_tokens, prompting.stop(cfg)
    return Evaluator(
        sampler=sampler,
        rewards=rewards,
        tokenizer=tokenizer,
        greedy=Sampling(max_tokens, temperature=0.0, stop=stop),
        n=cfg.eval.n,
        k=tuple(cfg.eval.k),
        sampling=Sampling(max_tokens, cfg.eval.temperature, cfg.eval.top_p, stop),
        seed=cfg.seed,
        at_a_time=at_a_time(cfg, ranks),
        ranks=ranks,
        max_tokens=limits_of_tests(cfg),
    )


def at_a_time(cfg: DictConfig, ranks: Ranks = ALONE) -> int | None:
    """How many completions evaluation asks the sampler for in one call; None for all of a test set at once, where its class
    says `continuous_batching`. Ranks that wait for the first one do so for a limited time: they ask for `MANY`.
    """
    if not getattr(get_object(cfg.rollout.sampler._target_), "continuous_batching", False):
        return int(cfg.eval.prompts)
    return None if ranks.size == 1 else MANY


def check_parts(cfg: DictConfig, gpu: int = 0) -> None:
    """Raise UserError where a part does not exist, or does not do its work on a few numbers (see `rehearsal`)."""
    name = partial(named, cfg)
    for key in ("optimizer", "schedule"):
        rehearsal.steps_alone(OmegaConf.select(cfg, f"{key}._target_"), name(key))
    check_named(OmegaConf.to_container(cfg, resolve=True))
    with torch.random.fork_rng(devices=[]):
        rehearsal.scoring(made(cfg, "algo.advantage"), made(cfg, "filter"), cfg.algo.group_size, name)
        rehearsal.selection(made(cfg, "select"), cfg.algo.group_size, name)
        rehearsal.objective(objective_of(cfg), bool(cfg.algo.train_sampler), name)
        rehearsal.optimization(optimization_of(cfg), stand_ins(cfg, gpu), cfg.steps, name)


def stand_ins(cfg: DictConfig, gpu: int) -> list[Tensor]:
    """A matrix and a vector of the type that is trained, on this device; an adapter has only matrices."""
    on_gpu = cfg.trainer.accelerator == "gpu" and torch.cuda.is_available()
    dtype = torch.float32 if cfg.model.adapter else getattr(torch, cfg.model.dtype)
    ones = partial(torch.ones, dtype=dtype, device=torch.device("cuda", gpu) if on_gpu else torch.device("cpu"))
    return [torch.nn.Parameter(ones(4, 4)), *([] if cfg.model.adapter else [torch.nn.Parameter(ones(4))])]


def meet(cfg: DictConfig, module: PolicyModule, group: Ranks) -> None:
    """Come together with the other ranks. With trainer=fsdp Lightning has the module sharded when it sets the training up."""
    group.join(gpus=cfg.trainer.accelerator == "gpu")
    for_servers = not isinstance(module.refresh.sampler, SharedSampler)
    if module.sharded and group.first and for_servers and adapter.has_one(module.policy):
        adapter.keep_base(module.policy)


def is_sharded(cfg: DictConfig, group: Ranks) -> bool:
    """Whether each rank has a part of every weight."""
    return group.size > 1 and cfg.trainer.strategy == "fsdp"


def make_trainer(
    cfg: DictConfig, run_dir: Path, group: Ranks, callbacks: list[L.Callback], trackers: Sequence[Tracker] = ()
) -> L.Trainer:
    """Lightning's Trainer of this rank."""
    os.environ.pop("PL_GLOBAL_SEED", None)  # with several ranks Lightning would start the noise of each again, at every start
    trainer: L.Trainer = made(
        cfg,
        "trainer",
        callbacks=callbacks,
        logger=list(trackers) or False,
        default_root_dir=run_dir,
        **strategies.arguments(group.size, is_sharded(cfg, group)),
    )
    if group.size > 1:
        strategies.leave_signals_alone(trainer)
    return trainer


def close(parts: Parts) -> None:
    """Close the samplers and the processes that grade."""
    parts.data.close()
    close_rewards([parts.reward, *parts.data.evaluator.rewards.values()])


def weights_for_servers(policy: PreTrainedModel, group: Ranks, keep_rows: bool) -> Mapping[str, Tensor]:
    """Those of a policy that is sharded or will be, as they are now, on the first rank, which gives them to the servers.

    `keep_rows`: on the others the rows that they have of them, for snapshots in parts.
    """
    if sharded.is_sharded(policy):
        whole: Mapping[str, Tensor] = sharded.weights(policy, keep=group.first)
    else:
        whole = copied(adapter.trained(policy)) if group.first else {}
    if group.first or not keep_rows:
        return whole
    return copied({n: sharded.own_rows(t, group.index, group.size) for n, t in adapter.trained(policy, keep_vars=True).items()})


def importance_cap(cfg: DictConfig) -> float | None:
    """With stale weights `auto` caps the importance ratio at 2, unless the loss has a ratio of its own."""
    if cfg.rollout.importance_cap != "auto":
        return cfg.rollout.importance_cap
    old = (cfg.rollout.staleness > 0 or cfg.rollout.refresh_every != 1) and not cfg.algo.train_sampler
    return 2.0 if old and cfg.algo.loss._target_.endswith(".policy_gradient") else None
