"""The evaluation itself: the model is loaded, and each test set is sampled and graded."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dash_exp.commands.evaluate.command import Command
from dash_exp.commands.evaluate.output import per_problem, picture
from dash_exp.core import process
from dash_exp.core.errors import UserError
from dash_exp.core.files import write_whole
from dash_exp.results.problems import DIGEST

if TYPE_CHECKING:  # they load torch, which is needed only after the command was found good
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dash_exp.core.types import Problem, Prompt
    from dash_exp.evaluation.evaluator import Evaluator
    from dash_exp.sampling.base import Sampler


def run(cfg: DictConfig, command: Command, out: Path) -> dict[str, Any]:
    """Evaluate on every test set and write the results, which are also returned."""
    with process.importing():
        from dash_exp.commands.prompting import shown
        from dash_exp.commands.run import git_revision, quiet
        from dash_exp.data import digests
        from dash_exp.evaluation.progress import Progress
        from dash_exp.results.plots import plot_pass_at_k
        from dash_exp.results.summary import evaluation_table
        from dash_exp.rewards.base import close_rewards

    start = time.perf_counter()
    quiet()
    out.parent.mkdir(parents=True, exist_ok=True)
    tests, evaluator = build(cfg, command, out.parent)
    print(shown(evaluator.tokenizer, next(iter(tests.values()))[0]), flush=True)
    sampled = f"{command.n} completion(s) each at temperature {command.temperature:g}, top-p {command.top_p:g}, seed {cfg.seed}"
    print(f"{cfg.model.path} on {cfg.data.name}: greedy{f', and {sampled}' if command.n else ''}", flush=True)
    result: dict[str, Any] = {"settings": {**settings(cfg, command), "git": git_revision()}, "tests": {}}
    sets = {name: [prompt.problem for prompt in prompts] for name, prompts in tests.items()}
    result |= {f"{DIGEST}{name}": digest for name, digest in digests.of_tests(sets).items()}
    rows = out.with_suffix(".jsonl")
    try:
        for name, prompts in tests.items():
            progress = Progress(name, len(prompts) * (1 + command.n))
            done = evaluator(name, prompts, progress)
            progress.close()
            summary = done.summary()
            counts = {"problems": len(prompts), "timeouts": done.timeouts, "errors": done.errors}
            result["tests"][name] = {**counts, **summary}
            print(evaluation_table(name, len(prompts), summary), flush=True)
            if done.timeouts or done.errors:
                print(f"  gradings that did not finish: {done.timeouts} time-outs, {done.errors} errors", flush=True)
            with rows.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"test": name, **row}, ensure_ascii=False) + "\n" for row in per_problem(done))
            result["time/total_s"] = round(time.perf_counter() - start, 3)
            write_whole(out, json.dumps(result, indent=2) + "\n")
    finally:
        evaluator.sampler.close()
        close_rewards(evaluator.rewards.values())
    if len(command.k) > 1:
        plot_pass_at_k(result["tests"], command.k, picture(out))
    print(f"results {out}, completions {rows}", flush=True)
    return result


def settings(cfg: DictConfig, command: Command) -> dict[str, Any]:
    """What the results depend on, for the file of results."""
    return {
        "model": cfg.model.path,
        "target": command.target,
        "n": command.n,
        "k": list(command.k),
        "temperature": command.temperature if command.n else None,
        "top_p": command.top_p if command.n else None,
        "seed": cfg.seed,
        "max_response_tokens": cfg.rollout.max_response_tokens,  # of the test sets without a limit of their own, see data
        "limit": cfg.eval.limit,
        "data": OmegaConf.to_container(cfg.data, resolve=True),
        "prompt": OmegaConf.to_container(cfg.prompt, resolve=True),
        "reward": OmegaConf.to_container(cfg.reward, resolve=True),
    }


def build(cfg: DictConfig, command: Command, output: Path) -> tuple[dict[str, list[Prompt]], Evaluator]:
    """The test sets as the model will see them, and the evaluator. The model is loaded last. `output`: see `sampler_of`."""
    from dash_exp.commands import data_sets, prompting
    from dash_exp.commands.build import at_a_time
    from dash_exp.commands.rewards import rewards_of
    from dash_exp.evaluation.evaluator import Evaluator
    from dash_exp.sampling.base import Sampling
    from dash_exp.settings.data import limits_of_tests

    tokenizer = tokenizer_of(cfg)
    names = [str(name) for name, test in cfg.data.tests.items() if test is not None]
    train: list[Problem] = []
    if prompting.shows_examples(cfg):
        train, problems, _ = data_sets.problems(cfg)
    else:
        problems = {name: data_sets.data_set(cfg, f"data.tests.{name}")[: cfg.eval.limit] for name in names}
    rewards = rewards_of(cfg, {f"data.tests.{name}": test for name, test in problems.items()}, tokenizer)
    policy, sampler = loaded(cfg, tokenizer, output)
    read = prompting.reader(cfg, train, tokenizer, policy)
    tests = {name: read(test, where=f"data.tests.{name}") for name, test in problems.items()}
    max_tokens, stop = cfg.rollout.max_response_tokens, prompting.stop(cfg)
    evaluator = Evaluator(
        sampler=sampler,
        rewards={name: rewards[f"data.tests.{name}"] for name in names},
        tokenizer=tokenizer,
        greedy=Sampling(max_tokens, temperature=0.0, stop=stop),
        n=command.n,
        k=command.k,
        sampling=Sampling(max_tokens, command.temperature, command.top_p, stop) if command.n else None,
        seed=cfg.seed,
        at_a_time=at_a_time(cfg),
        max_tokens=limits_of_tests(cfg),
    )
    return tests, evaluator


def tokenizer_of(cfg: DictConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, after checks of the device, of the names in the settings, and of the folder of the model."""
    from dash_exp.commands.parts import check_named
    from dash_exp.models import folders, loading

    device_of(cfg)
    check_named({key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("data", "reward", "rollout")})
    folders.check_folder(cfg.model.path)
    return loading.load_tokenizer(cfg.model.tokenizer, trust_remote_code=cfg.model.get("trust_remote_code", False))


def loaded(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase, output: Path) -> tuple[PreTrainedModel, Sampler]:
    """The model, and a sampler with its weights."""
    import torch

    from dash_exp.commands.samplers import sampler_of
    from dash_exp.models import loading

    policy = loading.load_policy(
        cfg.model.path,
        cfg.model.dtype,
        attn_implementation=cfg.model.attn_implementation,
        trust_remote_code=cfg.model.get("trust_remote_code", False),  # a run of an earlier version does not have it
    )
    loading.check_vocabulary(policy, tokenizer, cfg.model.path)
    torch.nn.Module.to(policy, device_of(cfg))
    sampler = sampler_of(cfg, policy, tokenizer, output)
    try:
        sampler.load_weights(policy.state_dict(), 0)
    except BaseException:
        sampler.close()
        raise
    return policy, sampler


def device_of(cfg: DictConfig) -> str:
    """Where the model goes: cpu, cuda or mps."""
    import torch

    if cfg.trainer.accelerator != "gpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if not torch.backends.mps.is_available():
        raise UserError("trainer.accelerator=gpu", "torch finds no GPU on this machine", "Use trainer=cpu")
    return "mps"
