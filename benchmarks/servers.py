r"""Tokens per second through two sampling servers, against one engine in the process and against Transformers.

    python benchmarks/servers.py                                            # a model of random weights, 512 completions
    python benchmarks/servers.py model=smollm2-135m model.compute_dtype=bfloat16 data=sums batch.prompts=16 batch.group_size=8

Each sampler has a process of its own, and the servers have theirs: `hf` and `vllm` with `--threads` threads, each of the
servers with an equal share of them. All sample the same prompts, one sampler after the other in turn, so that only one works
at a time. `--old CHECKOUT` adds two servers of an earlier commit, installed or not, with the same settings; what it needs is
taken from this environment.

Given are the tokens that were sampled, of each call, and how long new weights took; medians, and the least and the most. The
memory is the proportional share (PSS) of the server's processes, or of the sampler's, after the last call. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soak import ROOT, children

DEFAULTS = {
    "model": ["model=tiny_random"],
    "eval": ["eval.limit=8"],
}
START_S = 300.0  # for a server to be there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each sampler (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of each sampler (default: %(default)s)")
    parser.add_argument("--ways", default="hf,vllm,servers", help="comma-separated (default: %(default)s)")
    parser.add_argument("--old", type=Path, help="a checkout whose servers are measured too")
    parser.add_argument("--out", type=Path, default=Path("outputs/servers"), help="folder for logs and numbers")
    parser.add_argument("--sampler", action="store_true", help=argparse.SUPPRESS)  # this is the process of one sampler
    arguments = parser.parse_intermixed_args()
    if arguments.sampler:
        sampler(arguments.overrides)
        return
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    named = {override.lstrip("+~").partition("=")[0] for override in arguments.overrides}
    settings = [s for name, those in DEFAULTS.items() if name not in named for s in those] + arguments.overrides
    trees = dict.fromkeys(arguments.ways.split(","), ROOT) | ({"old servers": arguments.old} if arguments.old else {})
    ways = []
    try:
        for name, tree in trees.items():
            ways.append(Way(name, tree.resolve(), settings, arguments.threads, out))
            print(f"{name}: ready; new weights took {ways[-1].loading_s:.2f} s at first", flush=True)
        for i in range(arguments.repeats + 1):  # the first call of each warms it up
            for way in ways:
                print(f"[{i}/{arguments.repeats}] {way.name}: {way.call():,.0f} tokens/s", flush=True)
        found = {way.name: way.figures() for way in ways}
    finally:
        for way in ways:
            way.end()
    (out / "servers.json").write_text(json.dumps({"settings": settings, "ways": found}, indent=1) + "\n")
    print(table(found))


class Way:
    """A process that samples, and its servers."""

    def __init__(self, name: str, tree: Path, settings: Sequence[str], threads: int, out: Path) -> None:
        self.name, self.tree, self.out = name, tree, out
        self.servers: list[subprocess.Popen[str]] = []
        self.answers: list[dict[str, Any]] = []
        kind = "vllm_server" if name.endswith("servers") else name
        settings = [f"rollout={kind}", *settings]
        try:
            if kind == "vllm_server":
                ports = [free_port(), free_port()]
                for port in ports:
                    command = ["-m", "dash_exp.serve", f"port={port}", *settings]
                    self.servers.append(self._started(f"server-{port}", command, max(1, threads // len(ports)), out))
                for port, server in zip(ports, self.servers, strict=True):
                    wait_for(port, server)
                settings += [f"rollout.sampler.servers=[{','.join(f'http://127.0.0.1:{port}' for port in ports)}]"]
            command = [str(Path(__file__).resolve()), "--sampler", *settings]
            self.process = self._started("sampler", command, threads, out)
            self.loading_s = float(self._answer()["loading_s"])
        except BaseException:
            self.end()
            raise

    def _started(self, kind: str, command: Sequence[str], threads: int, out: Path) -> subprocess.Popen[str]:
        log = (out / f"{self.name.replace(' ', '-')}-{kind}.log").open("w")
        environment = {**os.environ, "PYTHONPATH": str(self.tree / "src"), "OMP_NUM_THREADS": str(threads)}
        out_to = subprocess.PIPE if kind == "sampler" else log
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": out_to, "stderr": log}
        return subprocess.Popen([sys.executable, *command], cwd=self.tree, env=environment, encoding="utf-8", **pipes)

    def call(self) -> float:
        """Sample once; tokens per second."""
        assert self.process.stdin is not None
        print("", file=self.process.stdin, flush=True)
        self.answers.append(self._answer())
        return self.answers[-1]["tokens"] / self.answers[-1]["seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # other lines are of libraries
            if line.startswith("{"):
                return dict(json.loads(line))
        sys.exit(f"{self.name}: the sampler has ended; see {self.out}")

    def figures(self) -> dict[str, Any]:
        """Of all calls but the first: tokens per second, seconds of new weights, tokens; and MiB."""
        calls = self.answers[1:]
        return {
            "tokens_per_s": [call["tokens"] / call["seconds"] for call in calls],
            "loading_s": [call["loading_s"] for call in calls],
            "tokens": [call["tokens"] for call in calls],
            "sampler_mib": share(self.process.pid),
            "server_mib": [share(server.pid) for server in self.servers],
        }

    def end(self) -> None:
        for process in [*self.servers, *([self.process] if hasattr(self, "process") else [])]:
            below = children(process.pid) if process.poll() is None else []
            process.kill()
            for pid in below:
                subprocess.run(["kill", "-9", str(pid)], stderr=subprocess.DEVNULL, check=False)
            process.wait()


def sampler(overrides: Sequence[str]) -> None:
    """Load weights and sample, once for every line of the input; answers are lines of JSON."""
    import torch
    from hydra.utils import instantiate

    from dash_exp.commands import cli, prompting
    from dash_exp.commands.parts import made
    from dash_exp.models import loading
    from dash_exp.sampling.base import Sampling

    cfg = cli.composed(overrides)
    tokenizer = loading.load_tokenizer(cfg.model.tokenizer)
    architecture: Any = dict(cfg.model.architecture) if cfg.model.architecture else None
    torch.manual_seed(0)
    policy = loading.load_policy(cfg.model.path, cfg.model.dtype, architecture)
    train = instantiate(cfg.data.train)
    prompts = prompting.reader(cfg, train, tokenizer, policy)(train, where="data.train")[: cfg.batch.prompts]
    dtype = getattr(torch, cfg.model.compute_dtype)
    samples = made(cfg, "rollout.sampler")(policy=policy, tokenizer=tokenizer, compute_dtype=dtype)
    how = Sampling(cfg.rollout.max_response_tokens, stop=prompting.stop(cfg))

    def load(version: int) -> float:
        start = time.perf_counter()
        samples.load_weights(policy.state_dict(), version)
        return time.perf_counter() - start

    print(json.dumps({"loading_s": load(0)}), flush=True)
    for version, _ in enumerate(sys.stdin, start=1):
        loading_s, start = load(version), time.perf_counter()
        completions = samples.sample(prompts, cfg.batch.group_size, how, (0, version))
        seconds, tokens = time.perf_counter() - start, sum(len(completion.ids) for completion in completions)
        print(json.dumps({"loading_s": loading_s, "seconds": seconds, "tokens": tokens}), flush=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(port: int, server: subprocess.Popen[str]) -> None:
    """Until somebody listens there."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    sys.exit(f"the server on port {port} is not there after {START_S:.0f} s, or has ended: see its log")


def share(pid: int) -> float:
    """MiB of a process and its children: memory that they share with others is counted in part."""
    lines = [line for each in [pid, *children(pid)] for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    def words(values: Sequence[float], digits: int) -> str:
        return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"

    head = f"{'':14}{'tokens/s':>26}{'new weights, s':>24}{'tokens of a call':>26}{'MiB: sampler, servers':>34}"
    lines = [
        f"{name:14}{words(of['tokens_per_s'], 0):>26}{words(of['loading_s'], 2):>24}{words(of['tokens'], 0):>26}"
        + f"{', '.join(f'{mib:,.0f}' for mib in [of['sampler_mib'], *of['server_mib']]):>34}"
        for name, of in found.items()
    ]
    return "\n".join([head, *lines])


if __name__ == "__main__":
    main()
