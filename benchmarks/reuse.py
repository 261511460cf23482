r"""What it would save to use completions of the epoch before as drafts of new ones (`speculative reuse`, which is not built).

    python train.py model=smollm2-135m model.compute_dtype=bfloat16 data=sums kl=0 steps=14 hydra.run.dir=outputs/one_epoch
    python benchmarks/reuse.py models/SmolLM2-135M-Instruct outputs/one_epoch/checkpoints/last model=smollm2-135m \
        model.compute_dtype=bfloat16 data=sums batch.prompts=16 batch.group_size=8

The first model is the policy of the epoch before, the second the policy now. A token t of a draft is kept with the probability
min(1, p_now(t) / p_before(t)); the first one that is not kept is replaced by one drawn from max(0, p_now - p_before), and the
rest is sampled anew. So every completion has exactly the distribution of the policy now (Leviathan et al. 2023, arXiv
2211.17192; for epochs of RL: Liu et al. 2025, SPEC-RL, arXiv 2509.23232).

Timed are the two parts of it, as they would be here: one pass of the policy now over the drafts, and sampling behind the tokens
that were kept, where prompts are no longer shared by a group. (The one token that is replaced is left out, and all rests may be
as long as the longest, so the second part is a little too slow.) Against it: to sample all of it. Medians over `--repeats`
batches of other problems, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate

from dash_exp.commands import cli, prompting
from dash_exp.core.types import Completion, Prompt, Sample
from dash_exp.models import loading
from dash_exp.models.passes import Passes
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.hf import HFSampler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="folder of the policy of the epoch before")
    parser.add_argument("now", help="folder of the policy now")
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    parser.add_argument("--repeats", type=int, default=5, help="batches (default: %(default)s)")
    arguments = parser.parse_intermixed_args()
    cfg = cli.composed([f"model.path={arguments.now}", *arguments.overrides])
    tokenizer = loading.load_tokenizer(arguments.now)
    before, now = (loading.load_policy(path, cfg.model.dtype) for path in (arguments.before, arguments.now))
    dtype = getattr(torch, cfg.model.compute_dtype)
    old, new = (HFSampler(policy, tokenizer, cfg.rollout.sampler.max_sequences, dtype) for policy in (before, now))
    passing = Passes(cfg.batch.micro_tokens, 0, 1.0, dtype)
    how = Sampling(cfg.rollout.max_response_tokens, stop=prompting.stop(cfg))
    train = instantiate(cfg.data.train)
    prompts = prompting.reader(cfg, train, tokenizer, now)(train, where="data.train")
    size = int(cfg.batch.group_size)
    if len(prompts) < (arguments.repeats + 1) * cfg.batch.prompts:
        parser.error(f"{len(prompts)} problems are too few for {arguments.repeats} batches: lower --repeats or batch.prompts")
    rows = []
    for i in range(arguments.repeats + 1):  # the first one warms up
        asked = prompts[i * cfg.batch.prompts : (i + 1) * cfg.batch.prompts]
        drafts = old.sample(asked, size, how, (0, i))
        plain_s, plain = timed(new.sample, asked, size, how, (1, i))
        pass_s, kept = timed(accepted, now, passing, asked, drafts, np.random.default_rng((2, i)))
        rest = [
            replace(asked[j // size], ids=(*asked[j // size].ids, *draft.ids[:n].tolist()))
            for j, (draft, n) in enumerate(zip(drafts, kept, strict=True))
            if n < len(draft.ids)
        ]
        shorter = replace(how, max_tokens=how.max_tokens - min(kept))
        rest_s, again = timed(new.sample, rest, 1, shorter, (3, i)) if rest else (0.0, [])
        tokens = sum(len(draft.ids) for draft in drafts)
        rows.append((sum(kept) / tokens, len(rest) / len(drafts), plain_s, pass_s, rest_s, (pass_s + rest_s) / plain_s))
        sampled = sum(len(completion.ids) for completion in plain), sum(len(completion.ids) for completion in again)
        print(
            f"[{i}/{arguments.repeats}] {said(rows[-1])}; tokens sampled: {sampled[0]}, behind drafts {sampled[1]}", flush=True
        )
    print("median: " + said([statistics.median(values) for values in zip(*rows[1:], strict=True)]))


def accepted(
    policy: Any, passing: Passes, prompts: Sequence[Prompt], drafts: Sequence[Completion], draw: np.random.Generator
) -> list[int]:
    """How many tokens of each draft are kept, by the log-probabilities that it was sampled with."""
    group = len(drafts) // len(prompts)
    samples = [Sample(prompts[j // group].ids, draft.ids, 0.0, draft.logprobs) for j, draft in enumerate(drafts)]
    kept = [0] * len(drafts)
    with torch.no_grad():
        for chosen, batch in passing.micro_batches(policy, samples):
            now_BT = passing.log_probs(policy, batch).numpy()
            for row, j in enumerate(chosen):
                n = len(drafts[j].ids)
                stays = np.log(draw.random(n)) < now_BT[row, :n] - np.asarray(drafts[j].logprobs)
                kept[j] = n if stays.all() else int(stays.argmin())
    return kept


def timed(do: Any, *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = do(*arguments)
    return time.perf_counter() - start, result


def said(row: Sequence[float]) -> str:
    share, unfinished, plain_s, pass_s, rest_s, ratio = row
    return (
        f"{share:.0%} of the draft's tokens kept, {unfinished:.0%} of the drafts cut; all sampled {plain_s:.1f} s, "
        f"with drafts {pass_s:.1f} + {rest_s:.1f} s, {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
