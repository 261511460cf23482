"""Memory and rates of a device: measured on this machine in some seconds, or known for a kind of GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.utils import benchmark

GIB = 2**30
STREAM_BYTES = 2**28  # of each tensor: far more than a cache holds
LONG_S, SHORT_S = 1.0, 0.3  # seconds that a measurement takes: in a benchmark, and before a run


def seconds_of(work: Callable[[], object], run_s: float = LONG_S) -> tuple[float, float]:
    """Median and minimum seconds of one call, over as many calls as fit into `run_s` seconds, after a warm-up.

    Waits for a GPU to finish.
    """
    work()
    timer = benchmark.Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    found = timer.blocked_autorange(min_run_time=run_s)
    return found.median, min(found.times)


def matrix_rates(
    shapes: Mapping[str, tuple[int, int, int]], dtype: torch.dtype, device: torch.device, run_s: float = LONG_S
) -> dict[str, tuple[float, float]]:
    """Operations per second, median and best, of products (m, k) x (k, n) as a linear layer computes them.

    `shapes`: (m, k, n) by name; the result has the same names.
    """
    rates = {}
    for name, (m, k, n) in shapes.items():
        inputs, weights = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
        with torch.inference_mode():
            median, least = seconds_of(partial(torch.nn.functional.linear, inputs, weights), run_s)
        rates[name] = (2 * m * k * n / median, 2 * m * k * n / least)
    return rates


def bandwidths(device: torch.device, run_s: float = LONG_S) -> dict[str, float]:
    """Bytes per second, read and written, of STREAM's copy and triad (a = b + s c) on float32 tensors of 256 MiB."""
    a, b, c = (torch.rand(STREAM_BYTES // 4, device=device) for _ in range(3))
    return {
        "copy": 2 * STREAM_BYTES / seconds_of(lambda: a.copy_(b), run_s)[0],
        "triad": 3 * STREAM_BYTES / seconds_of(lambda: torch.add(b, c, alpha=3.0, out=a), run_s)[0],
    }


@dataclass(frozen=True)
class Device:
    """One device, its rates, and where these numbers come from (`source`)."""

    name: str
    kind: str  # cpu or gpu
    memory: float  # bytes
    rates: Mapping[str, float]  # operations per second of large matrix products, by dtype
    bandwidth: float  # bytes per second, reads and writes added up
    links: tuple[float, float]  # bytes per second to other devices, each direction: inside a machine, between machines
    source: str
    cpu_memory: float | None = None  # bytes, beside a GPU; None where it is not known


# Bytes per second and direction: NVLink of H100 and H200, NVLink of A100, InfiniBand NDR (400 Gbit/s).
NVLINK_4, NVLINK_3, INFINIBAND = 450e9, 300e9, 50e9

# Memory: as torch reports it for such a device. Rates: the vendor's data sheet (dense, SXM) times an assumed share.
SHARE, SHARE_OF_BANDWIDTH = 0.8, 0.9
SHEET = "data sheet, times 0.8 (products) and 0.9 (memory), which are assumed"
KNOWN = {
    "a100": Device(
        "A100 80 GB",
        "gpu",
        79.1 * GIB,
        {"bfloat16": SHARE * 312e12, "float16": SHARE * 312e12, "float32": SHARE * 19.5e12},
        SHARE_OF_BANDWIDTH * 2.0e12,
        (NVLINK_3, INFINIBAND),
        SHEET,
    ),
    "h100": Device(
        "H100 80 GB",
        "gpu",
        79.1 * GIB,
        {"bfloat16": SHARE * 989e12, "float16": SHARE * 989e12, "float32": SHARE * 67e12},
        SHARE_OF_BANDWIDTH * 3.35e12,
        (NVLINK_4, INFINIBAND),
        SHEET,
    ),
    "h200": Device(
        "H200 141 GB",
        "gpu",
        139.8 * GIB,
        {"bfloat16": SHARE * 989e12, "float16": SHARE * 989e12, "float32": SHARE * 67e12},
        SHARE_OF_BANDWIDTH * 4.8e12,
        (NVLINK_4, INFINIBAND),
        SHEET,
    ),
}


def this_machine(accelerator: str, dtype: str) -> Device:
    """The device that a run uses on this machine: `accelerator` cpu or gpu. Its rates are measured in about a second each."""
    if accelerator == "gpu":
        device = torch.device("cuda")
        properties = torch.cuda.get_device_properties(device)
        name, memory, side = properties.name, float(properties.total_memory), 8192
    else:
        device = torch.device("cpu")
        name, memory, side = f"this machine's CPU, {torch.get_num_threads()} thread(s)", available_bytes(), 1024
    shape = {"square": (side, side, side)}
    rates = {d: matrix_rates(shape, getattr(torch, d), device, SHORT_S)["square"][1] for d in dict.fromkeys(["float32", dtype])}
    links = (NVLINK_4, INFINIBAND) if accelerator == "gpu" else (10e9, 1e9)
    bandwidth = bandwidths(device, SHORT_S)["copy"]
    source = f"measured just now: product of {side}^3, copy of 256 MiB"
    cpu_memory = available_bytes() if accelerator == "gpu" else None
    return Device(name, accelerator, memory, rates, bandwidth, links, source, cpu_memory)


def available_bytes() -> float:
    """Bytes of CPU memory that a process can still allocate: of the machine, or of its control group where that is less."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines() if Path("/proc/meminfo").exists() else []
    free = [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text(encoding="utf-8").strip()).isdigit():
        free.append(float(text))
    return min(free, default=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
