"""One run: build the parts from the configuration, train, evaluate, and leave the record."""

from __future__ import annotations

import csv
import json
import logging
import platform
import subprocess
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import transformers
from hydra.utils import get_method, instantiate
from lightning.fabric.plugins.environments import LightningEnvironment
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import PreTrainedModel

from dash_exp import adapter, data, files, kl, model, packing, process, ranks, sharded
from dash_exp.budget import LIMITS, Budget
from dash_exp.errors import UserError
from dash_exp.kl import Penalty, RewardPenalty
from dash_exp.metrics import PHASES, SIDES, Clock
from dash_exp.module import PolicyModule
from dash_exp.optimizer import with_master_weights
from dash_exp.plots import plot_curves
from dash_exp.progress import Progress
from dash_exp.ranks import ALONE, NOTICE_S, Ranks
from dash_exp.record import RunRecord
from dash_exp.results import same_numbers, write_result
from dash_exp.reward import check_problems
from dash_exp.rollout import RolloutDataModule, Truncated
from dash_exp.sampler import Sampler, Sampling
from dash_exp.sampler.refresh import Refresh, copied
from dash_exp.shares import NoSampler, SharedPenalty, SharedReward, SharedSampler
from dash_exp.snapshot import Snapshots
from dash_exp.summary import result_table
from dash_exp.validate import check_optimizer
from dash_exp.watch import Watch

log = logging.getLogger(__name__)


@dataclass
class Parts:
    """What one run is made of."""

    module: PolicyModule
    data: RolloutDataModule
    reward: Any
    tokenizer: Any
    clock: Clock


def run(cfg: DictConfig, run_dir: Path, in_sweep: bool = False) -> dict[str, Any]:
    """Run one arm to its end and return its result, which is also in `result.json` of `run_dir`.

    A run that SIGTERM ends leaves with SystemExit(`process.RESUME_ME`), one that Ctrl-C ends with `process.INTERRUPTED`. Raises
    UserError for what the user can mend, a full disk among it.
    """
    start = time.perf_counter()
    quiet()
    if cfg.trainer.accelerator == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise UserError("trainer.accelerator=gpu", "torch finds no GPU on this machine", "Use trainer=cpu")
    if cfg.trainer.accelerator == "gpu" and cfg.trainer.devices > (there := max(torch.cuda.device_count(), 1)):
        raise UserError(f"trainer.devices={cfg.trainer.devices}", f"torch finds {there} GPU(s) on this machine", "Lower it")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with process.alone_in(run_dir), process.leaving_on_sigterm():
            files.write_whole(run_dir / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            return start_run(cfg, run_dir, in_sweep, start)
    except OSError as error:
        if told := disk_error(error, run_dir, "begins again"):
            raise told from error
        raise


def disk_error(error: BaseException, run_dir: Path, way_on: str) -> UserError | None:
    """What the user is told where a disk did not take what was written; None for other errors."""
    found = files.trouble(error)
    return found and UserError(found[0] or str(run_dir), found[1], f"{found[2]}; the same command then {way_on}")


def rank_error(error: BaseException, group: Ranks, way_on: str) -> UserError | None:
    """What the user is told where the end of another rank broke what this one did with it; None for other errors."""
    lost = group.lost(within_s=NOTICE_S) if isinstance(error, RuntimeError) else None
    return lost and UserError(lost.where, lost.wrong, f"The same command {way_on}")


def start_run(cfg: DictConfig, run_dir: Path, in_sweep: bool, start: float) -> dict[str, Any]:
    """Build the parts and train. `start` is when the run began, by `time.perf_counter`."""
    with ranks.started(
        cfg.trainer.devices,
        run_dir,
        on_cpu=cfg.trainer.accelerator == "cpu",
        told=lambda error: write_result(run_dir, {"status": "failed", "error": str(error), "git": git_revision()}),
    ) as group:
        return _start_run(cfg, run_dir, in_sweep, start, group)


def _start_run(cfg: DictConfig, run_dir: Path, in_sweep: bool, start: float, group: Ranks) -> dict[str, Any]:
    L.seed_everything(cfg.seed, verbose=False)
    try:
        parts = build(cfg, group)
        meet(cfg, parts, group)
    except BaseException as error:
        leave = process.status_of_stop(error)
        write_result(run_dir, {"status": "stopped" if leave else "failed", "error": str(error), "git": git_revision()})
        if leave:
            print("stopped in the set-up: the same command goes on, or begins again", flush=True)
            raise SystemExit(leave) from error
        try:
            finish_tracker(start_tracker(cfg, run_dir, in_sweep), run_dir)  # so that W&B has every cell of a sweep
        except Exception:
            log.exception("the tracker was not told")
        raise
    try:
        return train(cfg, parts, run_dir, in_sweep, start, group)
    finally:
        close(parts)


def follow(cfg: DictConfig, run_dir: Path, group: Ranks) -> None:
    """What a rank beside the first does (see `ranks`): the same steps, without a record."""
    quiet()
    L.seed_everything(cfg.seed, verbose=False)
    parts = build(cfg, group)
    meet(cfg, parts, group)
    L.seed_everything(cfg.seed + group.index, verbose=False)  # from here on noise of its own, such as dropout
    try:
        snapshots = Snapshots(run_dir, cfg.resume_every, settings_text(cfg), parts.data, dict, anew=not cfg.resume, ranks=group)
        record = RunRecord(run_dir, parts.tokenizer, cfg.completions_every, cfg.table_rows, rows=snapshots.rows, writes=False)
        budget = Budget(parts.clock, **limits(cfg, snapshots.rows), ranks=group)
        trainer = make_trainer(cfg, run_dir, group, [budget, record, snapshots])
        if snapshots.state is not None:
            snapshots.put_back(trainer, parts.module, record)
        else:
            trainer.validate(parts.module, datamodule=parts.data, verbose=False)
        trainer.fit(parts.module, datamodule=parts.data)
    finally:
        close(parts)


def close(parts: Parts) -> None:
    """End what is at work beside this process."""
    parts.data.close()
    if hasattr(parts.reward, "close"):
        parts.reward.close()


def settings_text(cfg: DictConfig) -> str:
    """The settings that a snapshot has to have for this run to go on from it."""
    return json.dumps(same_numbers(OmegaConf.to_container(cfg, resolve=True)))  # type: ignore[arg-type]


def limits(cfg: DictConfig, rows: Sequence[dict[str, float | int | None]]) -> dict[str, Any]:
    """Those of the budget, and what was used of it before, by these rows of metrics."""
    sampled = sum(int(row.get("tokens/sampled") or 0) for row in rows)
    return {name: cfg.budget[name] for name in LIMITS} | {"already_sampled_tokens": sampled}


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


def train(cfg: DictConfig, parts: Parts, run_dir: Path, in_sweep: bool, start: float, group: Ranks = ALONE) -> dict[str, Any]:
    """Train, evaluate and write the record."""
    columns = [f"accuracy/{test}" for test in parts.data.test_prompts]
    measured = [name for name in parts.data.evaluator.names() if name != "accuracy"]
    columns += [f"eval/{test}/{name}" for test in parts.data.test_prompts for name in measured]
    columns += [f"reward/{name}" for name in getattr(parts.reward, "components", ())]
    result: dict[str, Any] = {"status": "failed", "git": git_revision()}
    base: dict[str, dict[str, bool]] = {}
    snapshots = Snapshots(
        run_dir,
        cfg.resume_every,
        settings_text(cfg),
        parts.data,
        lambda: {"result": result, "base": base, "total_s": time.perf_counter() - start},
        anew=not cfg.resume,
        ranks=group,
    )
    tracker = start_tracker(cfg, run_dir, in_sweep)  # before the record, which removes what an earlier attempt left
    record = RunRecord(run_dir, parts.tokenizer, cfg.completions_every, cfg.table_rows, columns, snapshots.rows)
    budget = Budget(parts.clock, **limits(cfg, snapshots.rows), ranks=group)
    trainer = make_trainer(cfg, run_dir, group, [budget, record, snapshots, Progress(cfg.steps)], tracker)
    print(sizes(cfg, parts, run_dir), flush=True)
    result["device"] = device_name(trainer) if group.size == 1 else f"{group.size} x {device_name(trainer)}"
    result |= {f"sizes/{name}": size for name, size in derived_sizes(cfg, parts).items()}
    try:
        if snapshots.state is not None:
            snapshots.put_back(trainer, parts.module, record)
            more = snapshots.state["more"]
            result |= {k: v for k, v in more["result"].items() if k.endswith("/base")}
            base, start = more["base"], start - more["total_s"]
            if str(result["git"]) not in str(more["result"]["git"]).split(" then "):
                result["git"] = f"{more['result']['git']} then {result['git']}"  # which the report warns of
            print(f"goes on after outer step {snapshots.step} (resume=false begins anew)", flush=True)
        else:
            trainer.validate(parts.module, datamodule=parts.data, verbose=False)
            record.write_base(parts.module, trainer)
            result |= {f"{name}/base": value for name, value in evaluated(parts.module).items()}
            base = parts.module.right
        trainer.fit(parts.module, datamodule=parts.data)
        assert parts.module.accuracy_version == parts.module.policy_version, "the last step was not evaluated"
        result |= {f"{name}/final": value for name, value in evaluated(parts.module).items()}
        write_problems(run_dir, base, parts.module.right)
        result |= {"status": "done", "stopped_by": budget.reached}
        process.stay_to_the_end()
    except BaseException as error:
        if leave := process.status_of_stop(error):
            result["status"] = "stopped"
            print(f"stopped: the same command {snapshots.way_on()}", flush=True)
            raise SystemExit(leave) from error
        told = rank_error(error, group, snapshots.way_on()) or disk_error(error, run_dir, snapshots.way_on())
        result["error"] = f"{type(told or error).__name__}: {told or error}"
        if told:
            raise told from error
        raise
    finally:
        result |= totals(parts, record, time.perf_counter() - start)
        try:
            write_result(run_dir, result)
            finish_tracker(tracker, run_dir)
        except OSError as error:
            if result["status"] == "done":
                raise
            log.warning("result.json was not written: %s", error)  # what ended the run is what is to be told
    snapshots.remove()
    plot_curves(record.rows, parts.clock.seconds, run_dir / "curves.png")
    print(f"{result_table(result)}\nrun folder {run_dir}", flush=True)
    return result


def start_tracker(cfg: DictConfig, run_dir: Path, in_sweep: bool) -> Any:
    """The logger of this run for Lightning; None without one."""
    return cfg.logger.wandb and instantiate(cfg.logger.wandb)(
        run_dir=run_dir,
        name=run_dir.name if in_sweep else f"{cfg.name}/{run_dir.name}",
        group=cfg.name if in_sweep else None,
        settings=OmegaConf.to_container(cfg, resolve=True),
    )


def finish_tracker(tracker: Any, run_dir: Path) -> None:
    """Give the tracker, if there is one, the record of the run that ended, and end it."""
    if tracker:
        from dash_exp.logger import finish  # wandb is loaded only where it is used

        finish(tracker, run_dir)


def evaluated(module: PolicyModule) -> dict[str, float | None]:
    """The last evaluation: `accuracy/TEST`, and `eval/TEST/...` with the ends of each 95% interval."""
    return {**{f"accuracy/{name}": value for name, value in module.accuracy.items()}, **module.evaluation}


def write_problems(run_dir: Path, base: dict[str, dict[str, bool]], final: dict[str, dict[str, bool]]) -> None:
    """`problems.csv`: whether the greedy completion of each test problem was right, before training and after it."""
    with files.whole(run_dir / "problems.csv", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["test", "problem", "base", "final"])
        writer.writerows([t, p, int(base[t][p]), int(right)] for t, problems in final.items() for p, right in problems.items())


def build(cfg: DictConfig, group: Ranks = ALONE) -> Parts:
    """The parts of a run, from values and callables alone: none of them sees the configuration.

    Of several ranks each does a share of sampling and grading with `rollout=hf`; with other samplers, which have devices of
    their own, the first does it all.
    """
    if cfg.data.train is None:
        raise UserError(
            "data.train",
            f"is null: data={cfg.data.name} has nothing to train on",
            "Choose another data set, or evaluate: python -m dash_exp.evaluate",
        )
    clock = Clock()
    if not cfg.model.architecture:
        model.check_folder(cfg.model.path)
    check_optimizer(cfg)
    tokenizer = model.load_tokenizer(cfg.model.tokenizer, trust_remote_code=cfg.model.trust_remote_code)
    tests = {name: instantiate(test) for name, test in cfg.data.tests.items() if test is not None}
    train = data.without(instantiate(cfg.data.train), [p for problems in tests.values() for p in problems])
    reward = instantiate(cfg.reward)
    check_problems(reward, [*train, *(p for problems in tests.values() for p in problems)])
    lora: Any = OmegaConf.to_container(cfg.model.lora) if cfg.model.adapter else None
    if lora is not None:
        del lora["lr"]  # the optimizer's
    policy = model.load_policy(
        cfg.model.path,
        cfg.model.dtype,
        OmegaConf.to_container(cfg.model.architecture) if cfg.model.architecture else None,  # type: ignore[arg-type]
        cfg.model.gradient_checkpointing,
        cfg.model.attn_implementation,
        cfg.model.trust_remote_code,
        lora,
    )
    model.check_vocabulary(policy, tokenizer, cfg.model.path)
    compute_dtype = getattr(torch, cfg.model.compute_dtype)
    watch = Watch(
        OmegaConf.to_container(cfg.watch, resolve=True),  # type: ignore[arg-type]
        mismatch_limit=cfg.rollout.mismatch_limit or (1e-4 if compute_dtype == torch.float32 else 0.03),
    )
    kl_coef: kl.Schedule = instantiate(cfg.kl.schedule)(coef=cfg.kl.coef, steps=cfg.steps)
    estimator = get_method(f"dash_exp.kl.{cfg.kl.estimator}")
    reference = None if kl_coef.always_zero else model.frozen_copy(policy)
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
        weights = (
            partial(weights_for_servers, policy, group)
            if cfg.trainer.strategy == "fsdp" and group.size > 1 and not shared
            else None
        )
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
            context=model.context_length(policy, cfg.rollout.sampler.get("max_model_len")),
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
        return Parts(module, datamodule, reward, tokenizer, clock)
    except Exception:
        sampler.close()  # an engine holds a GPU's memory, and the next cell of a sweep wants it
        raise


def meet(cfg: DictConfig, parts: Parts, group: Ranks) -> None:
    """Come together with the other ranks, and with trainer=fsdp leave each its part of policy and reference."""
    on_gpu = cfg.trainer.accelerator == "gpu"
    group.join(gpus=on_gpu)
    if group.size > 1 and cfg.trainer.strategy == "fsdp":
        policy, reference = parts.module.policy, parts.module.reference
        if group.first and adapter.has_one(policy) and not isinstance(parts.module.refresh.sampler, SharedSampler):
            adapter.keep_base(policy)  # for servers
        for of_module in [policy, *([] if reference in (None, policy) else [reference])]:  # with an adapter they are one
            sharded.shard(of_module, group.size, "cuda" if on_gpu else "cpu")


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


def sizes(cfg: DictConfig, parts: Parts, run_dir: Path) -> str:
    """The derived sizes, so that nobody has to guess what "batch size" means here."""
    batch, data_ = cfg.batch, parts.data
    size = derived_sizes(cfg, parts)
    tests = ", ".join(f"{len(p):,} {name}" for name, p in data_.test_prompts.items())
    return "\n".join(
        [
            f"{cfg.algo.name} on {cfg.data.name}, seed {cfg.seed} -> {run_dir}",
            f"  policy                    {size['parameters']:,} parameters{adapter_words(parts)}, {cfg.model.compute_dtype}, "
            f"{cfg.trainer.accelerator}" + (f" x {cfg.trainer.devices}" if cfg.trainer.devices > 1 else ""),
            f"  problems                  {size['train_problems']:,} to train on; tests: {tests}",
            f"  outer steps               {cfg.steps}{budget_words(cfg)}",
            f"  completions per step      {size['completions_per_step']} = {batch.prompts} prompts x {data_.group_size}",
            f"  completions per sampling  {size['completions_per_call']} ({data_.sampling_calls} sampling call(s) per step)",
            f"  sampler                   {sampler_words(cfg)}",
            f"  optimizer steps per step  {size['optimizer_steps_per_step']} = {batch.epochs} pass(es) x {batch.minibatches}",
            f"  filter                    {described(cfg.filter)}; truncated completions: {cfg.rollout.truncated}",
            f"  denominator of the loss   {cfg.algo.denominator._target_.rpartition('.')[2]}",
            f"  tokens per backward pass  at most {batch.micro_tokens:,}, "
            + ("no padding, a shared prompt once" if packing.enabled(parts.module.policy) else "padding counted"),
            f"  KL                        {kl_words(cfg)}",
        ]
    )


def derived_sizes(cfg: DictConfig, parts: Parts) -> dict[str, int]:
    """Sizes that follow from several settings together, or from the data."""
    data_ = parts.data
    return {
        "parameters": sum(p.numel() for p in parts.module.policy.parameters()),
        "train_problems": len(data_.train_prompts),
        "completions_per_step": data_.prompts * data_.group_size,
        "completions_per_call": data_.sample_prompts * data_.group_size,
        "optimizer_steps_per_step": cfg.batch.epochs * cfg.batch.minibatches,
    }


def adapter_words(parts: Parts) -> str:
    """` (188,416 of them an adapter, which alone is trained)`."""
    policy = parts.module.policy
    trained = sum(tensor.numel() for tensor in adapter.trained(policy).values())
    return f" ({trained:,} of them an adapter, which alone is trained)" if adapter.has_one(policy) else ""


def budget_words(cfg: DictConfig) -> str:
    """`, or fewer: until 120 seconds`."""
    limits = [f"{cfg.budget[name]:,.6g} {name.replace('_', ' ')}" for name in LIMITS if cfg.budget[name] is not None]
    return f", or fewer: until {' or '.join(limits)}" if limits else ""


def device_name(trainer: L.Trainer) -> str:
    """`NVIDIA H100 80GB HBM3`, or the processor with the number of threads that torch uses."""
    if trainer.strategy.root_device.type == "cuda":
        return torch.cuda.get_device_name(trainer.strategy.root_device)
    try:
        cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        name = cpu.partition(":")[2].strip()
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} thread(s)"


def described(part: DictConfig) -> str:
    """`AdvantageAbove(threshold=0.1)`."""
    settings = ", ".join(f"{k!s}={v}" for k, v in part.items() if k not in ("_target_", "_partial_"))
    return f"{part._target_.rpartition('.')[2]}({settings})"


def sampler_words(cfg: DictConfig) -> str:
    """`VLLMSampler, its weights at most 1 outer step(s) old, ratio to them capped at 2`."""
    rollout, cap = cfg.rollout, importance_cap(cfg)
    words = rollout.sampler._target_.rpartition(".")[2]
    if rollout.refresh_every is None:
        words += ", its weights never refreshed"
    elif oldest := rollout.staleness + rollout.refresh_every - 1:
        words += f", its weights at most {oldest} outer step(s) old"
    return words + ("" if cap is None else f", ratio to them capped at {cap:g}")


def kl_words(cfg: DictConfig) -> str:
    if cfg.kl.coef == 0 and not cfg.kl.schedule.get("final"):
        return "0 (no reference model)"
    schedule = cfg.kl.schedule._target_.rpartition(".")[2].lower()
    schedule += f" to {cfg.kl.schedule.final}" if "final" in cfg.kl.schedule else ""
    return f"{cfg.kl.coef} {schedule}, {cfg.kl.estimator} in the {cfg.kl.place} (with reference model)"


def totals(parts: Parts, record: RunRecord, total_s: float) -> dict[str, Any]:
    """Seconds by phase and the counts of the whole run."""
    result: dict[str, Any] = {"time/total_s": round(total_s, 3)}
    result["time/elapsed_s"] = record.rows[-1]["time/elapsed_s"] if record.rows else 0.0
    result["steps"] = len(record.rows) - 1 if record.rows else 0
    result["optimizer_steps"] = parts.module.policy_version
    result |= {f"time/{phase}_s": round(parts.clock.seconds[phase], 3) for phase in PHASES}
    result |= {f"time/{side}_idle_s": round(parts.clock.idle[side], 3) for side in SIDES}
    counts = ["tokens/sampled", "tokens/trained", "completions/sampled", "completions/kept", "score/timeouts", "score/errors"]
    counts += ["optimizer/skipped_steps"]
    for name in counts:
        result[name] = sum(int(row.get(name) or 0) for row in record.rows)
    watch = parts.module.watch
    result |= {f"watch/{name}": count for name, count in watch.counts.items()} | {"watch/stopped_by": watch.stopped_by}
    result |= {"eval/timeouts": parts.data.eval_timeouts, "eval/errors": parts.data.eval_errors}
    return result


def git_revision() -> str | None:
    """Commit of the source, with "+changes" where the working tree differs from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def quiet() -> None:
    """Leave out what Lightning and others say about choices that are made on purpose here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT looks for it, and it for kernels that it can do without
    transformers.utils.logging.disable_progress_bar()
    for message in (
        "does not have many workers",
        "`IterableDataset` has `__len__`",
        "LeafSpec",
        "in eval mode at the start",
        "Detected call of `lr_scheduler.step",  # where the watch left the first optimizer step out
        "The `srun` command is available",  # on a cluster, where a launcher has used it
        "It is recommended to use `self.log",  # vLLM in this process makes a process group of one
    ):
        warnings.filterwarnings("ignore", f".*{message}")
