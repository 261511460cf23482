"""Completions in a form that `==`, sets and a reader of a failed test can use, and samples from tuples."""

import numpy as np

from dash_exp.core.types import Sample


def ids_of(completions):
    """The token ids of each, as a tuple."""
    return [tuple(c.ids.tolist()) for c in completions]


def plain(completions):
    """All that each holds: ids, log-probabilities to the last bit, how it ended."""
    logprobs = [None if c.logprobs is None else tuple(c.logprobs.tolist()) for c in completions]
    return [(ids, p, c.truncated, c.stopped) for ids, p, c in zip(ids_of(completions), logprobs, completions, strict=True)]


def sample_of(prompt_ids, completion_ids, advantage=0.0, logprobs=None):
    logprobs = None if logprobs is None else np.array(logprobs, np.float32)
    return Sample(prompt_ids, np.array(completion_ids, np.int32), advantage, logprobs)
