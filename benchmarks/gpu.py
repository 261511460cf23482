"""Speed and memory of this machine's GPU in at most eight minutes; without a GPU, of very small models on the CPU.

    python benchmarks/gpu.py                                      # all parts; into outputs/gpu/
    python benchmarks/gpu.py --parts small,large --seconds 200    # some of them, in less time
    python benchmarks/gpu.py --smollm2 DIR --gsm8k DIR            # with a real model on real data

The parts:

- `small`, `large`: models with the shapes of Qwen2.5-0.5B and 1.5B and random weights (`gpu_passes.py`). Tokens per second and
  model FLOP utilisation of update and sampling; the update packed and padded, with and without flash attention; peak memory
  against the plan.
- `dash`, `trl`, `trl_coupled`: a step of `peers.py --only-time` with the small model; TRL's where TRL is installed.
- `vllm`: sampling of the small model with vLLM, where it is installed. On a CPU only if it is named.
- `smollm2`: two steps of train.py with SmolLM2 on GSM8K and their plan, where model and data are there.

Each part is a process of its own with a time limit. A part that fails or takes too long does not end the others, and what it
had measured by then is kept. Writes `gpu.csv`, a row per number, and the output of each part to `PART.log`.

**On a machine without network.** The parts need the packages below beside torch, Transformers, Lightning and PEFT, and a part
without its packages is left out, with a message. Fetch wheels on a machine with network, for the other one's Python and
platform, and take them along with the repository:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d wheels \\
        hydra-core omegaconf datasets dill multiprocess math-verify latex2sympy2-extended trl==1.16.0 gguf
    pip wheel --no-deps -w wheels antlr4-python3-runtime==4.9.3    # which has no wheel
    pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=$PWD/src:$PWD/site    # there

`hydra-core`, `omegaconf` and `antlr4-python3-runtime` are needed by all parts; `datasets`, `dill` and `multiprocess` by data
sets and TRL; `math-verify` and `latex2sympy2-extended` by GSM8K; `gguf` for SmolLM2 from a GGUF file. Where a transfer takes at
most 64 MiB, files go in pieces: `split -b 60M FILE FILE.` here, and `cat FILE.?? > FILE` there.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS = 470  # of all parts
LEAST_S = 10.0  # a part is not started with less
ON_CPU = 3.0  # times the limit of a part: parts are short, but a busy machine imports slowly
COMMON = ["logger=csv", "kl=0", "algo=no_gf", "data.max_prompt_tokens={prompt}", "batch.prompts={prompts}"]
COMMON += ["batch.group_size=8", "rollout.max_response_tokens={response}"]
GPU = {"prompt": 128, "prompts": 16, "response": 256}
CPU = {"prompt": 24, "prompts": 4, "response": 16}
NEEDED = ("hydra", "omegaconf", "transformers", "lightning")


@dataclass(frozen=True)
class Part:
    """`work` gives rows (part, what, value, unit). `needs`: packages. `files`: options that name what must exist."""

    limit_s: float
    work: Callable[[str, argparse.Namespace], Iterator[Any]]
    needs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of all parts together (default: %(default)s)")
    parser.add_argument("--smollm2", type=Path, default=ROOT / "models/SmolLM2-135M-Instruct", help="folder or GGUF file")
    parser.add_argument("--gsm8k", type=Path, default=ROOT / "data/gsm8k", help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--run", help=argparse.SUPPRESS)  # one part, in this process
    options = parser.parse_args()
    options.gpu = has_gpu()
    if options.run:
        measure(options.run, options)
        return
    if unknown := set(options.parts or []) - set(PARTS):
        parser.error(f"--parts: unknown: {', '.join(sorted(unknown))}; the choices are {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [["part", "what", "value", "unit"], ["machine", device_words(), "", ""]]
    print(rows[-1][1], flush=True)
    end = time.monotonic() + options.seconds
    for name in options.parts or [p for p in PARTS if p != "vllm" or options.gpu]:
        seconds, found, said = one_part(name, options, end - time.monotonic())
        found.append([name, said, seconds, "s"])
        for row in found:
            print("{:12} {:58} {:14,.2f} {}".format(*row), flush=True)
        rows += found
        with (options.out / "gpu.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def one_part(name: str, options: argparse.Namespace, left_s: float) -> tuple[float, list[list[Any]], str]:
    """Measure one part in a process of its own. Returns its seconds, what it measured, and how it ended."""
    part = PARTS[name]
    missing = [package for package in (*NEEDED, *part.needs) if importlib.util.find_spec(package) is None]
    missing += [f"{getattr(options, file)}" for file in part.files if not getattr(options, file).exists()]
    if missing:
        return 0.0, [], f"not run: there is no {', no '.join(missing)}"
    if left_s < LEAST_S:
        return 0.0, [], "not run: no time was left"
    limit_s = min(part.limit_s * (1 if options.gpu else ON_CPU), left_s)
    rows, log = options.out / f"{name}.jsonl", options.out / f"{name}.log"
    rows.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), f"--run={name}", f"--out={options.out.resolve()}"]
    command += [f"--{file}={getattr(options, file).resolve()}" for file in part.files]
    start = time.monotonic()
    said = run(command, log, limit_s)
    found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    return time.monotonic() - start, found, said


def run(command: Sequence[str], log: Path, limit_s: float) -> str:
    """Run it for at most `limit_s` seconds, with all processes that it starts. Returns how it ended, in words."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"ended at its time limit of {limit_s:.0f} s"
        finally:  # what it started may still be there
            with_group(process.pid)
            process.wait()
    lines = log.read_text(errors="replace").strip().splitlines()
    return "done" if status == 0 else f"FAILED, status {status}: {lines[-1][-120:] if lines else 'no output'} ({log})"


def with_group(pid: int) -> None:
    """End all processes of the session that this process leads."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def measure(name: str, options: argparse.Namespace) -> None:
    """One part, in this process. Each number is written as soon as it is there."""
    with (options.out / f"{name}.jsonl").open("w") as file:
        for row in PARTS[name].work(name, options):
            file.write(json.dumps([*row]) + "\n")
            file.flush()


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def device_words() -> str:
    import torch

    versions = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        return f"CPU, {torch.get_num_threads()} thread(s), {versions}"
    device = torch.cuda.get_device_properties(0)
    return f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {versions}, CUDA {torch.version.cuda}"


# --- the parts -----------------------------------------------------------------------------------------------------------


def settings(model: str, sizes: Mapping[str, int], options: argparse.Namespace) -> list[str]:
    trainer = "gpu" if options.gpu else "cpu"
    return [*(setting.format(**sizes) for setting in COMMON), f"model={model}", f"trainer={trainer}"]


def sizes(options: argparse.Namespace) -> Mapping[str, int]:
    return GPU if options.gpu else CPU


def small(options: argparse.Namespace) -> list[str]:
    """Settings of the small model."""
    return settings("qwen2.5-0.5b-random" if options.gpu else "tiny_random", sizes(options), options)


def large(options: argparse.Namespace) -> list[str]:
    """Settings of the large model; its weights are not read."""
    wider = [] if options.gpu else ["model.architecture.hidden_size=256", "model.architecture.num_hidden_layers=6"]
    return [*settings("qwen2.5-1.5b" if options.gpu else "tiny_random", sizes(options), options), *wider]


def random_weights(chosen: Callable[[argparse.Namespace], list[str]], work: str) -> Callable[..., Iterator[Any]]:
    """A function of `gpu_passes`, on the model with these settings."""

    def measured(name: str, options: argparse.Namespace) -> Iterator[Any]:
        import gpu_passes

        from dash_exp.commands import cli
        from dash_exp.settings.overrides import number_of_kl

        yield from getattr(gpu_passes, work)(name, cli.composed(number_of_kl(chosen(options))))

    return measured


def against_trl(name: str, options: argparse.Namespace) -> Iterator[Any]:
    """One arm of `peers.py`, on a step after a warm-up. Prompts are those of the embedded data: short."""
    out = options.out / f"peers-{name}"
    shutil.rmtree(out, ignore_errors=True)  # peers.py would keep the runs that are done there, which are of an earlier program
    command = [sys.executable, "benchmarks/peers.py", "--only-time", "--seeds=1", "--steps=2", f"--arms={name}", f"--out={out}"]
    ours = {"algo", "kl", "data", "logger"}  # of the arm
    chosen = [s for s in small(options) if s.partition("=")[0].partition(".")[0] not in ours]
    batch = 8 * sizes(options)["prompts"]
    subprocess.run([*command, f"--trl-batch={min(64, batch)}", *chosen], cwd=ROOT, check=True)
    with (out / "runs.csv").open() as file:
        run = next(csv.DictReader(file))
    units = {"seconds_per_step": "s", "sample_s_per_step": "s", "update_s_per_step": "s", "sample_ms_per_token": "ms"}
    units |= {"update_ms_per_token": "ms", "sampled_tokens_per_s": "1/s", "trained_tokens_per_s": "1/s"}
    units |= {"trained_tflops": "TFLOP/s", "peak_rss_mb": "MiB", "peak_gpu_mb": "MiB"}
    for what, unit in units.items():
        if what in run:
            yield [name, what.replace("_", " "), float(run[what]), unit]


def smollm2(name: str, options: argparse.Namespace) -> Iterator[Any]:
    """Steps of train.py after a warm-up, their speed, and the plan of this run against what it took."""
    from peers_table import by_token
    from plan import against

    most = 256 if options.gpu else 8
    chosen = ["model=smollm2-135m", f"model.path={options.smollm2}", "data=gsm8k", f"data.path={options.gsm8k}", "kl=0"]
    chosen += [f"trainer={'gpu' if options.gpu else 'cpu'}", f"batch.prompts={32 if options.gpu else 2}", "batch.group_size=8"]
    chosen += ["steps=3", "logger=csv", "resume_every=null", "eval.limit=64" if options.gpu else "eval.limit=1"]
    run = against([*chosen, f"rollout.max_response_tokens={most}"])
    steps = [{k: float(v) for k, v in row.items() if v and k.startswith(("time/", "tokens/"))} for row in run.rows]
    for what, value in by_token(steps).items():
        yield [name, what.replace("_", " "), value, "ms" if "ms" in what else "1/s"]
    for what, (planned, seen) in run.compared.items():
        yield [name, f"{what}: measured", seen, ""]
        yield [name, f"{what}: planned", planned, ""]


PARTS = {
    "small": Part(70, random_weights(small, "passes")),
    "large": Part(100, random_weights(large, "passes")),
    "dash": Part(50, against_trl),
    "trl": Part(60, against_trl, needs=("trl", "datasets")),
    "trl_coupled": Part(70, against_trl, needs=("trl", "datasets")),
    "vllm": Part(90, random_weights(small, "vllm"), needs=("vllm",)),
    "smollm2": Part(60, smollm2, needs=("math_verify",), files=("smollm2", "gsm8k")),
}

if __name__ == "__main__":
    main()
