"""Training runs of a nano policy in Lightning's real loop, in less than a second, and the gradient that they step with."""

from __future__ import annotations

import copy
import math
from functools import partial

import lightning as L
import torch
from conftest import NANO

from dash_exp.algorithms import advantages, filters, kl, losses
from dash_exp.core.metrics import Clock
from dash_exp.core.types import Problem
from dash_exp.core.watch import Watch
from dash_exp.data.prompts import tokenized
from dash_exp.evaluation.evaluator import Evaluator
from dash_exp.models import loading
from dash_exp.models.passes import Passes
from dash_exp.rewards.base import Scores
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.hf import HFSampler
from dash_exp.sampling.refresh import Refresh
from dash_exp.training.module import PolicyModule
from dash_exp.training.objective import Objective, Optimization
from dash_exp.training.record import RunRecord
from dash_exp.training.rollout import RolloutDataModule, SamplingPlan
from dash_exp.training.scoring import Scoring

KEEP_ALL = filters.KeepAll()
SLOW = partial(torch.optim.SGD, lr=0.05)


def parity_reward(problems, texts):
    """Some completions of nearly every group are right: those of even length."""
    return Scores([float(len(t) % 2 == 0) for t in texts])


def never_right(problems, texts):
    return Scores([0.0] * len(texts))


def one_run(
    tokenizer,
    tmp_path,
    *,
    keep=KEEP_ALL,
    coef=0.0,
    schedule=kl.Constant,
    reward=parity_reward,
    steps=1,
    optimizer=None,
    loss=losses.policy_gradient,
    epochs=1,
    minibatches=1,
    sampler=HFSampler,
    staleness=0,
    importance_cap=None,
    advantage=advantages.group_normalized,
    watch=None,
    memory_gb=math.inf,
    eval_problems=1,
    selection=None,
    **batch,
):
    """Train the nano policy for `steps` outer steps; returns module, data and the policy before the first step."""
    torch.manual_seed(0)
    policy = loading.load_policy("", architecture=NANO)
    before = copy.deepcopy(policy)
    reference = loading.frozen_copy(policy)
    for parameter in reference.parameters():  # a reference that differs, or the KL term would be 0
        parameter += 0.05 * torch.randn_like(parameter)
    refresh = Refresh(policy, sampler(policy, tokenizer, max_sequences=64), staleness)
    clock, watch = Clock(), watch or Watch()
    sizes = {"prompts": 6, "group_size": 4, "sample_prompts": None} | {k: v for k, v in batch.items() if k != "micro_tokens"}
    passes = Passes(batch.get("micro_tokens", 10_000), pad_id=0)
    train = [Problem(str(i), f"{i}+{i}=" + "1" * (i % 5), "1") for i in range(12)]
    test = [Problem(f"t{i}", f"{1 + i}+1=", "2") for i in range(eval_problems)]
    data = RolloutDataModule(
        train=tokenized(train, tokenizer, 2048, 10, "data.train"),
        tests={"in_dist": tokenized(test, tokenizer, 2048, 10, "data.tests.in_dist")},
        plan=SamplingPlan(sampling=Sampling(10), **sizes),
        refresh=refresh,
        scoring=Scoring(reward, advantage, keep),
        evaluator=Evaluator(refresh.sampler, {"in_dist": reward}, tokenizer, Sampling(10, temperature=0.0)),
        passes=passes,
        clock=clock,
        watch=watch,
        memory_gb=memory_gb,
        selection=selection,
    )
    module = PolicyModule(
        policy=policy,
        reference=reference if coef else None,
        refresh=refresh,
        objective=Objective(loss, schedule(coef, steps), importance_cap=importance_cap),
        optimization=Optimization(
            optimizer=optimizer or partial(torch.optim.SGD, lr=1.0),
            schedule=partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
            clip_norm=1e9,
            epochs=epochs,
            minibatches=minibatches,
        ),
        passes=passes,
        clock=clock,
        test_names=["in_dist"],
        watch=watch,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=steps,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=steps,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[RunRecord(tmp_path, tokenizer, 1, 1, [f"eval/in_dist/{name}" for name in data.evaluator.names("in_dist")])],
    )
    try:
        trainer.fit(module, datamodule=data)
    finally:
        data.close()
    return module, data, before


def gradient(module, before):
    """With SGD at learning rate 1 the gradient is what the weights lost."""
    pairs = zip(before.parameters(), module.policy.parameters(), strict=True)
    return torch.cat([(old - new).detach().flatten() for old, new in pairs])


def close(got, expected):
    """Equal up to float32 rounding, as a share of the largest entry."""
    assert expected.abs().max() > 1e-4  # there is something to compare
    torch.testing.assert_close(got / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=2e-5)
