"""Builds the parts of a run from its configuration: data, reward, policy, sampler, the two halves of a step, the Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import get_method, instantiate
from lightning.fabric.plugins.environments import LightningEnvironment
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import PreTrainedModel

from dash_exp.algorithms import kl
from dash_exp.algorithms.kl_penalty import Penalty, RewardPenalty
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import Clock
from dash_exp.core.watch import Watch
from dash_exp.data import order
from dash_exp.distributed.ranks import ALONE, Ranks
from dash_exp.models import adapter, loading, sharded
from dash_exp.models.optimizer import with_master_weights
from dash_exp.rewards.base import check_problems
from dash_exp.sampling.base import Sampler, Sampling
from dash_exp.sampling.refresh import Refresh, copied
from dash_exp.training.module import PolicyModule
from dash_exp.training.rollout import RolloutDataModule, Truncated
from dash_exp.training.shares import NoSampler, SharedPenalty, SharedReward, SharedSampler


@dataclass
class Parts:
    """What one run is made of."""

    module: PolicyModule
    data: RolloutDataModule
    reward: Any
    tokenizer: Any
    clock: Clock


def build(cfg: DictConfig, group: Ranks = ALONE) -> Parts:
    """The parts of a run, from values and callables alone: none of them sees the configuration.

    Of several ranks each does a share of sampling and grading with `rollout=hf`; with other samplers, which have devices of
    their own, the first does it all. They come together at the end.
    """
    if cfg.data.train is None:
        raise UserError(
            "data.train",
            f"is null: data={cfg.data.name} has nothing to train on",
            "Choose another data set, or evaluate: python -m dash_exp.evaluate",
        )
    clock = Clock()
    if not cfg.model.architecture:
        loading.check_folder(cfg.model.path)
    check_optimizer(cfg)
    tokenizer = loading.load_tokenizer(cfg.model.tokenizer, trust_remote_code=cfg.model.trust_remote_code)
    tests = {name: instantiate(test) for name, test in cfg.data.tests.items() if test is not None}
    train = order.without(instantiate(cfg.data.train), [p for problems in tests.values() for p in problems])
    reward = instantiate(cfg.reward)
    check_problems(reward, [*train, *(p for problems in tests.values() for p in problems)])
    lora: Any = OmegaConf.to_container(cfg.model.lora) if cfg.model.adapter else None
    if lora is not None:
        del lora["lr"]  # the optimizer's
    policy = loading.load_policy(
        cfg.model.path,
        cfg.model.dtype,
        OmegaConf.to_container(cfg.model.architecture) if cfg.model.architecture else None,  # type: ignore[arg-type]
        cfg.model.gradient_checkpointing,
        cfg.model.attn_implementation,
        cfg.model.trust_remote_code,
        lora,
    )
    loading.check_vocabulary(policy, tokenizer, cfg.model.path)
    compute_dtype = getattr(torch, cfg.model.compute_dtype)
    watch = Watch(
        OmegaConf.to_container(cfg.watch, resolve=True),  # type: ignore[arg-type]
        mismatch_limit=cfg.rollout.mismatch_limit or (1e-4 if compute_dtype == torch.float32 else 0.03),
    )
    kl_coef: kl.Schedule = instantiate(cfg.kl.schedule)(coef=cfg.kl.coef, steps=cfg.steps)
    estimator = get_method(f"dash_exp.algorithms.kl.{cfg.kl.estimator}")
    reference = None if kl_coef.always_zero else loading.frozen_copy(policy)
    shared = group.size > 1 and cfg.rollout.sampler._target_.endswith(".HFSampler")
    kl_penalty: Penalty | None = None
    if reference is not None and cfg.kl.place == "reward":
        kl_penalty = RewardPenalty(
            reference, estimator, cfg.batch.micro_tokens, cfg.rollout.temperature, tokenizer.pad_token_id, compute_dtype
        )
    sampler: Sampler = NoSampler()
    if group.first or shared:
        sampler = instantiate(cfg.rollout.sampler)(policy=policy, tokenizer=tokenizer, compute_dtype=compute_dtype)
    train_sampler = cfg.algo.train_sampler and instantiate(cfg.algo.train_sampler)(tokenizer=tokenizer, reward=reward)
    if shared:
        sampler, reward = SharedSampler(sampler, group, policy), SharedReward(reward, group)
        kl_penalty = kl_penalty and SharedPenalty(kl_penalty, group)
    try:
        sharded_for_servers = cfg.trainer.strategy == "fsdp" and group.size > 1 and not shared
        weights = partial(weights_for_servers, policy, group) if sharded_for_servers else None
        refresh = Refresh(policy, sampler, cfg.rollout.staleness, cfg.rollout.refresh_every, weights)
        datamodule = RolloutDataModule(
            train=train,
            tests={name: problems[: cfg.eval.limit] for name, problems in tests.items()},
            tokenizer=tokenizer,
            refresh=refresh,
            train_sampler=train_sampler or None,
            reward=reward,
            advantage=instantiate(cfg.algo.advantage),
            keep=instantiate(cfg.filter),
            clock=clock,
            prompts=cfg.batch.prompts,
            group_size=cfg.algo.group_size,
            sample_prompts=cfg.batch.sample_prompts,
            sampling=Sampling(cfg.rollout.max_response_tokens, cfg.rollout.temperature),
            context=loading.context_length(policy, cfg.rollout.sampler.get("max_model_len")),
            max_prompt_tokens=cfg.data.max_prompt_tokens,
            eval_prompts=cfg.eval.prompts,
            seed=cfg.seed,
            truncated=Truncated(cfg.rollout.truncated, cfg.rollout.truncated_penalty),
            kl_penalty=kl_penalty,
            kl_coef=kl_coef,
            eval_n=cfg.eval.n,
            eval_k=cfg.eval.k,
            eval_sampling=Sampling(cfg.rollout.max_response_tokens, cfg.eval.temperature, cfg.eval.top_p),
            watch=watch,
            micro_tokens=cfg.batch.micro_tokens,
            memory_gb=cfg.rollout.memory_gb,
            compute_dtype=compute_dtype,
            ranks=ALONE if shared else group,
        )
        optimizer = instantiate(cfg.optimizer, _convert_="all")  # bitsandbytes keeps its settings in what a snapshot holds
        module = PolicyModule(
            policy=policy,
            reference=reference if kl_penalty is None else None,
            refresh=refresh,
            loss=instantiate(cfg.algo.loss),
            weighting=instantiate(cfg.algo.weighting),
            denominator=instantiate(cfg.algo.denominator),
            kl=estimator,
            kl_coef=kl_coef,
            optimizer=with_master_weights(optimizer) if cfg.model.master_weights else optimizer,
            schedule=instantiate(cfg.schedule),
            clip_norm=cfg.clip_norm,
            micro_tokens=cfg.batch.micro_tokens,
            temperature=cfg.rollout.temperature,
            pad_id=tokenizer.pad_token_id,
            clock=clock,
            test_names=list(tests),
            epochs=cfg.batch.epochs,
            minibatches=cfg.batch.minibatches,
            seed=cfg.seed,
            importance_cap=importance_cap(cfg),
            watch=watch,
            compute_dtype=compute_dtype,
            ranks=group,
        )
        meet(cfg, module, group)
        return Parts(module, datamodule, reward, tokenizer, clock)
    except Exception:
        sampler.close()  # an engine holds a GPU's memory, and the next cell of a sweep wants it
        raise


def check_optimizer(cfg: DictConfig) -> None:
    """Raise UserError where optimizer or schedule do not take their settings, which only they know."""
    try:
        optimizer = instantiate(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
        instantiate(cfg.schedule)(optimizer=optimizer)
    except Exception as error:  # each has its own
        said = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(
            "optimizer and schedule", f"cannot be made ({said})", "Mend their settings; ~optimizer.NAME takes one out"
        ) from error


def meet(cfg: DictConfig, module: PolicyModule, group: Ranks) -> None:
    """Come together with the other ranks, and with trainer=fsdp leave each its part of policy and reference."""
    on_gpu = cfg.trainer.accelerator == "gpu"
    group.join(gpus=on_gpu)
    if group.size > 1 and cfg.trainer.strategy == "fsdp":
        policy, reference = module.policy, module.reference
        if group.first and adapter.has_one(policy) and not isinstance(module.refresh.sampler, SharedSampler):
            adapter.keep_base(policy)  # for servers
        for of_module in [policy, *([] if reference in (None, policy) else [reference])]:  # with an adapter they are one
            sharded.shard(of_module, group.size, "cuda" if on_gpu else "cpu")


def make_trainer(cfg: DictConfig, run_dir: Path, group: Ranks, callbacks: list[L.Callback], tracker: Any = None) -> L.Trainer:
    """Lightning's Trainer of this rank, which has one device."""
    one_of_several = cfg.trainer.accelerator == "gpu" and group.size > 1
    return instantiate(
        cfg.trainer,
        devices=[group.index] if one_of_several else 1,
        strategy="auto",
        callbacks=callbacks,
        logger=tracker or False,
        default_root_dir=run_dir,
        plugins=[LightningEnvironment()],  # on Slurm, its own would requeue the job and load a pickle, beside the snapshots
    )


def close(parts: Parts) -> None:
    """End what is at work beside this process."""
    parts.data.close()
    if hasattr(parts.reward, "close"):
        parts.reward.close()


def weights_for_servers(policy: PreTrainedModel, group: Ranks) -> Mapping[str, Tensor]:
    """Those of a policy that is sharded or will be, as they are now, on the first rank, which gives them to the servers."""
    if sharded.is_sharded(policy):
        return sharded.weights(policy, keep=group.first)
    return copied(adapter.trained(policy)) if group.first else {}


def importance_cap(cfg: DictConfig) -> float | None:
    """Where weights are old on purpose, `auto` caps the ratio at 2, unless the loss has a ratio of its own."""
    if cfg.rollout.importance_cap != "auto":
        return cfg.rollout.importance_cap
    old = (cfg.rollout.staleness > 0 or cfg.rollout.refresh_every != 1) and not cfg.algo.train_sampler
    return 2.0 if old and cfg.algo.loss._target_.endswith(".policy_gradient") else None
