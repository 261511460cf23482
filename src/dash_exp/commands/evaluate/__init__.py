"""Evaluate a checkpoint of a run, or any model, on the test sets of a data set.

    python -m dash_exp.evaluate RUN_OR_MODEL [name=value ...]

RUN_OR_MODEL  a run folder, whose data, reward and sampling settings are used, or a Transformers folder or hub name
k=[1,8]       also pass@k, for each k
n=8           completions sampled of each problem, for pass@k, avg@n and maj@n; default: the largest k
temperature=0.7 top_p=0.95     of the sampled completions
checkpoint=last                of a run: last, best, or base (the model that training started from)
limit=100     only the first problems of each test set
seed=0        of the sampled completions; default: that of the run
out=FILE.json default: evaluation.json in the run folder, or in the current folder; completions are written to FILE.jsonl

Greedy accuracy is always measured. Any other setting of train.py can be given: data=gsm8k data.path=DIR reward=math
rollout.max_response_tokens=512 trainer=gpu model.compute_dtype=bfloat16 eval.prompts=64.
"""

from __future__ import annotations

from dash_exp.commands import cli
from dash_exp.commands.evaluate import running
from dash_exp.commands.evaluate.command import parse
from dash_exp.commands.evaluate.configuration import configured
from dash_exp.commands.evaluate.output import output_file


def main() -> None:
    command = parse(cli.help_or_arguments(__doc__))
    cfg = configured(command)
    out = output_file(command)
    running.run(cfg, command, out)
