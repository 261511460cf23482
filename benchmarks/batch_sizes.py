"""Measures how fast the tiny model samples and trains with batches of different sizes.

    python benchmarks/batch_sizes.py

Prints tokens per second: the median of five interleaved rounds, after one warm-up round. It uses the threads that torch uses.
"""

import statistics
import sys
import time

from dash_exp.core.types import Prompt, Sample
from dash_exp.data import arithmetic
from dash_exp.models import loading, log_probs, packing
from dash_exp.models.batch import micro_batches
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.hf import HFSampler

GROUP, ROUNDS = 8, 5
PROMPTS = (1, 4, 16, 64)  # prompts per sampling call, GROUP completions each
MICRO_TOKENS = (64, 256, 1024, 2048, 8192, 25000)  # tokens of a backward pass


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    tokenizer, policy = loading.load_tokenizer(str(loading.ASSETS / "tiny")), loading.load_policy(str(loading.ASSETS / "tiny"))
    problems = arithmetic.generate("train", "symbols", 20000)[: max(PROMPTS)]
    prompts = [Prompt(p, tuple(tokenizer(p.prompt).input_ids)) for p in problems]
    sampler = HFSampler(policy, tokenizer, max_sequences=GROUP * max(PROMPTS))
    calls = [range(0, len(prompts), n) for n in PROMPTS]
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS + 1):
        for n, starts in zip(PROMPTS, calls, strict=True):
            start = time.perf_counter()
            completions = [c for i in starts for c in sampler.sample(prompts[i : i + n], GROUP, Sampling(64), (0, 0))]
            rate = sum(len(c.ids) for c in completions) / (time.perf_counter() - start)
            rates.setdefault(f"sampling {n * GROUP} completions at a time", []).append(rate)
        samples = [Sample(prompts[i // GROUP].ids, c.ids, 1.0) for i, c in enumerate(completions)]
        tokens = sum(len(s.prompt_ids) + len(s.completion_ids) for s in samples)
        for micro_tokens in MICRO_TOKENS:
            start = time.perf_counter()
            for _, batch in micro_batches(samples, micro_tokens, int(tokenizer.pad_token_id), packing.enabled(policy)):
                log_probs.token_logprobs(policy, batch, 1.0).sum().backward()
            policy.zero_grad()
            rate = tokens / (time.perf_counter() - start)
            rates.setdefault(f"training on at most {micro_tokens} tokens at a time", []).append(rate)
    for what, found in rates.items():
        print(f"{what:48}{statistics.median(found[1:]):10,.0f} tokens/s")


if __name__ == "__main__":
    main()
