"""The sizes of a run that its memory and its time follow from, read from its settings. No weights or data are loaded."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from dash_exp.models import packing
from dash_exp.planning.adapters import target_layers
from dash_exp.planning.architecture import architecture
from dash_exp.planning.beside import ScorerSizes, TeacherSizes, grading_bytes, scorers_of, teacher_of
from dash_exp.planning.costs import Size, size_of
from dash_exp.planning.empty_models import parameter_count, reads_packed
from dash_exp.planning.load import Adapters, BackwardPass, DecodingBatch, Load
from dash_exp.planning.machine import Device
from dash_exp.planning.samplers import SamplerSizes, kind_of_sampler, sampler_sizes
from dash_exp.sampling.engine import sleep_level
from dash_exp.settings.data import longest_response, response_limit
from dash_exp.settings.prompt import may_be_chat

TEMPLATE_TOKENS = 40  # of a chat template, with the system text that some have: SmolLM2's takes 30
EXAMPLE_MARKS = 12  # tokens of a template around a question and its answer: SmolLM2's takes 11


@dataclass(frozen=True)
class OuterStep:
    """The work of an outer step. Prompts are those of one device."""

    prompts: int
    group: int  # completions of a prompt
    calls: int  # of the sampler
    prompts_per_call: int
    epochs: int
    optimizer_steps: int
    micro_tokens: int


@dataclass(frozen=True)
class Lengths:
    """In tokens. Memory is planned for completions of `longest`, time for the mean `completion`.

    `tested`: the longest completion of a test set, where that is longer than in training.
    """

    prompt: int
    completion: int
    longest: int
    tested: int = 0

    @property
    def sequence(self) -> int:
        """The longest prompt and completion together, in training."""
        return self.prompt + self.longest

    @property
    def sampled(self) -> int:
        """The same of all that is sampled."""
        return self.prompt + max(self.longest, self.tested)


@dataclass(frozen=True)
class Job:
    """The sizes of a run; `load`, `step` and `lengths` are those of one device."""

    load: Load
    size: Size
    parameters: int
    trained: int
    devices: int
    nodes: int
    step: OuterStep
    lengths: Lengths
    sampler: SamplerSizes
    staleness: int  # outer steps that are sampled ahead
    refresh_every: int | None  # outer steps between updates of the sampler's weights
    completions: int  # of all devices that are in CPU memory at the same time
    state_numbers: int  # numbers in the state dict: tied weights under each of their names
    largest_weight: int  # numbers of the largest tensor that is trained
    temporaries: bool  # the optimizer makes a copy of all weights in a step
    scorers: tuple[ScorerSizes, ...]
    teacher: TeacherSizes | None
    grading: float  # bytes of the processes that grade, of one rank
    resumes: bool  # where it was stopped it reads a snapshot
    saves: bool  # it writes snapshots on the way

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a part of the policy only."""
        return self.load.shards > 1

    @property
    def trained_bytes(self) -> int:
        """Bytes of the part of the state dict that is trained: all of it, or the adapter, which has 32 bits."""
        return self.trained * (4 if self.load.adapters else self.load.dtype.itemsize)

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of a snapshot: what is trained, moments and 32-bit copies."""
        return self.trained_bytes + self.trained * self.load.optimizer_bytes

    @property
    def sent_bytes(self) -> int:
        """Bytes of what servers get at each update: the adapter alone, or all weights under all of their names."""
        numbers = self.trained if self.sends_adapter else self.state_numbers
        return numbers * self.load.compute_dtype.itemsize

    @property
    def sends_adapter(self) -> bool:
        """Whether an engine keeps the weights that it has and gets the adapter at each update."""
        return self.load.adapters is not None and not self.sampler.merge

    @property
    def weights_kept_asleep(self) -> bool:
        """Whether an engine keeps its weights in CPU memory while it sleeps."""
        return self.sampler.sleeps and sleep_level(self.load.config.model_type, self.sends_adapter) == 1

    @property
    def model_bytes(self) -> int:
        """Bytes of the model's weights as they are kept."""
        return self.parameters * self.load.dtype.itemsize

    @property
    def engine_weight_bytes(self) -> int:
        """Bytes of the weights in an engine, which has them as they are computed with."""
        return self.parameters * self.load.compute_dtype.itemsize


def job_of(cfg: DictConfig, device: Device) -> Job:
    """The sizes of the run that a composed configuration describes, on devices of this kind.

    Raises UserError for a model whose operations are not known and for adapters that match no layer.
    """
    model = architecture(cfg)
    devices = cfg.trainer.devices * cfg.trainer.num_nodes
    on_gpu = device.kind == "gpu"
    step, lengths, sampler = outer_step(cfg, devices), lengths_of(cfg), sampler_sizes(cfg, device)
    adapters = adapters_of(cfg)
    in_32_bits = adapters is not None or cfg.model.dtype == "float32"  # what is trained
    master_weights = not in_32_bits and cfg.model.master_weights
    attention = packing.OF_SETTING.get(cfg.model.attn_implementation, cfg.model.attn_implementation)
    packed = not cfg.model.trust_remote_code and reads_packed(model.config, attention)
    load = Load(
        config=model.config,
        dtype=getattr(torch, cfg.model.dtype),
        compute_dtype=getattr(torch, cfg.model.compute_dtype),
        attention=attention,
        gradient_checkpointing=cfg.model.gradient_checkpointing,
        reference=bool(cfg.kl.coef > 0 or cfg.kl.schedule.get("final")),
        reference_in_reward=cfg.kl.place == "reward",
        adapters=adapters,
        moment_bytes=moment_bytes(cfg.optimizer, 4 if in_32_bits or master_weights else 2),
        master_weights=master_weights,
        packed=packed,
        on_gpu=on_gpu,
        shards=devices if cfg.trainer.strategy == "fsdp" else 1,
        update=largest_pass(step, lengths, packed),
        decode=decoding_batches(cfg, step, lengths, devices) if kind_of_sampler(cfg) == "hf" else (),
    )
    weights = [p.numel() for p in model.parameters()]
    parameters = trained = parameter_count(model)
    if adapters:
        layers = target_layers(model, adapters.targets)
        trained = sum(adapters.rank * sum(layer.weight.shape) for layer in layers)
    # one rank scores all of them where it alone samples; an engine is asked for a whole test set at once
    in_test = cfg.eval.prompts if kind_of_sampler(cfg) == "hf" else sys.maxsize
    scored = max(step.prompts_per_call * step.group * (1 if sampler.kind == "hf" else devices), in_test)
    return Job(
        load=load,
        size=size_of(model),
        parameters=parameters,
        trained=trained,
        devices=devices,
        nodes=cfg.trainer.num_nodes,
        step=step,
        lengths=lengths,
        sampler=sampler,
        staleness=cfg.rollout.staleness,
        refresh_every=cfg.rollout.refresh_every,
        completions=most_completions(cfg, step.group),
        state_numbers=sum(tensor.numel() for tensor in model.state_dict().values()),
        largest_weight=max(weights),
        temporaries=on_gpu and cfg.optimizer._target_.startswith("torch.") and not cfg.optimizer.get("fused"),
        scorers=scorers_of(cfg, scored, lengths.sampled, on_gpu),
        teacher=teacher_of(cfg),
        grading=grading_bytes(cfg),
        resumes=cfg.resume,
        saves=cfg.resume_every is not None,
    )


def most_completions(cfg: DictConfig, group_size: int) -> int:
    """Completions that are in CPU memory at the same time, with every refill or screening call made."""
    prompts, rule = cfg.batch.prompts, cfg.select
    beside = rule.get("rounds", 0) * rule.get("wide", 0) * prompts * rule.get("first", 0)
    return (cfg.rollout.staleness + 1) * (prompts * group_size * (1 + cfg.filter.get("refill_rounds", 0)) + beside)


def moment_bytes(optimizer: DictConfig, itemsize: int) -> int:
    """Bytes that the optimizer keeps for each trained number of `itemsize` bytes; for one that is not known here as AdamW."""
    name = optimizer._target_.rpartition(".")[2]
    known = {
        "SGD": bool(optimizer.get("momentum")),
        "RMSprop": 1 + bool(optimizer.get("momentum")) + bool(optimizer.get("centered")),
        "Adagrad": 1,
        "Muon": 1,
    }
    return known.get(name, 3 if optimizer.get("amsgrad") else 2) * (1 if "8bit" in name else itemsize)


def outer_step(cfg: DictConfig, devices: int) -> OuterStep:
    """The share of one of `devices` in an outer step."""
    at_a_time = min(cfg.batch.sample_prompts or cfg.batch.prompts, cfg.batch.prompts)  # on all devices
    return OuterStep(
        prompts=-(-cfg.batch.prompts // devices),
        group=cfg.algo.group_size,
        calls=-(-cfg.batch.prompts // at_a_time),
        prompts_per_call=-(-at_a_time // devices),
        epochs=cfg.batch.epochs,
        optimizer_steps=cfg.batch.epochs * cfg.batch.minibatches,
        micro_tokens=cfg.batch.micro_tokens,
    )


def lengths_of(cfg: DictConfig) -> Lengths:
    """Lengths in training; `plan_tokens` is the mean of completions, where it is given."""
    longest = cfg.rollout.max_response_tokens
    return Lengths(
        prompt=prompt_tokens(cfg.data.train, cfg),
        completion=min(cfg.plan_tokens or longest, longest),
        longest=longest,
        tested=longest_response(cfg)[1],
    )


def prompt_tokens(problems: Any, cfg: DictConfig) -> int:
    """Tokens of the longest prompt: `data.max_prompt_tokens`; or the most that generated arithmetic can have, or 256, and what
    stands around the problem.
    """
    if cfg.data.max_prompt_tokens:
        return cfg.data.max_prompt_tokens
    if problems and problems._target_.endswith(".arithmetic.generate"):
        longest = max(problems.get("operands", [3, 6])) * (2 if problems.get("form") == "symbols" else 8)
        return longest + around_tokens(cfg, longest, characters=1)
    return 256 + around_tokens(cfg, 256, characters=4)


def around_tokens(cfg: DictConfig, problem: int, characters: int) -> int:
    """Tokens, each of so many `characters`, around a problem of so many. An example has a solution as long as its problem.

    In a chat the template's own are added. A model that may be an instruct model counts as one.
    """
    form = cfg.prompt
    asks = len(form.text) - len("{prompt}")
    others = len(form.system or "") + len(form.prefill or "")
    marks = TEMPLATE_TOKENS + form.few_shot * EXAMPLE_MARKS if may_be_chat(form, cfg.model) else 0
    return (asks * (form.few_shot + 1) + others) // characters + form.few_shot * 2 * problem + marks


def adapters_of(cfg: DictConfig) -> Adapters | None:
    """The adapters of `model.lora`, None with `model.adapter=null`."""
    if cfg.model.adapter is None:
        return None
    targets = cfg.model.lora.target_modules
    return Adapters(cfg.model.lora.r, targets if isinstance(targets, str) else tuple(targets))


def largest_pass(step: OuterStep, lengths: Lengths, packed: bool) -> BackwardPass:
    """The largest backward pass that `step.micro_tokens` allows (see `batch.cut` and `batch.cut_packed`)."""
    completions, longest = step.prompts_per_call * step.group, lengths.longest
    budget = 2 * step.micro_tokens if packed else step.micro_tokens  # packed, rows of attention may take twice as many
    rows = min(completions, max(1, budget // lengths.sequence))
    prompts = -(-rows // step.group)
    tokens = rows * longest
    if packed:
        tokens = min(tokens, max(longest, step.micro_tokens - prompts * lengths.prompt))
    minibatches = step.optimizer_steps // step.epochs
    several = rows < step.prompts * step.group // minibatches
    return BackwardPass(rows, longest, tokens, prompts, lengths.prompt, several)


def decoding_batches(cfg: DictConfig, step: OuterStep, lengths: Lengths, devices: int) -> tuple[DecodingBatch, ...]:
    """What Transformers decodes at the same time on one of `devices`, in training and in the evaluation of each test set: one
    completion of each problem, and `eval.n` more.
    """
    most = cfg.rollout.sampler.max_sequences
    found = []
    if not cfg.algo.train_sampler:
        prompts = min(step.prompts_per_call, most)
        completions = min(step.prompts_per_call * step.group, most)
        found.append(DecodingBatch(prompts, completions, lengths.longest, lengths.prompt))
        if first := cfg.select.get("first"):  # of more prompts, and fewer of each
            completions = min(step.prompts_per_call * cfg.select.wide * first, most)
            found.append(DecodingBatch(-(-completions // first), completions, lengths.longest, lengths.prompt))
    for name, test in cfg.data.tests.items():
        if test is not None:
            _, most_tokens = response_limit(cfg, f"data.tests.{name}")
            for count in (1, cfg.eval.n) if cfg.eval.n else (1,):  # completions of each problem: `evaluator.Evaluator`
                at_a_time = max(1, cfg.eval.prompts // count)
                problems = min(test.get("size") or at_a_time, cfg.eval.limit or at_a_time, at_a_time)
                problems = min(-(-problems // devices), most)
                completions = min(problems * count, most)
                found.append(DecodingBatch(problems, completions, most_tokens, prompt_tokens(test, cfg), "evaluate"))
    return tuple(dict.fromkeys(found))
