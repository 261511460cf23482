"""What a run holds besides the tensors of its passes: what it is, where it is, in which phases, and on which ranks.

`memory` finds the tensors of the passes by running them: weights, gradients, optimizer, reference, activations, logits, KV
cache. Whatever else a rank holds is a row here, next to the place in the source that holds it. With GPUs, CPU memory is another
memory than that of the devices; on a CPU they are one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dash_exp.distributed.ranks import BUCKET
from dash_exp.planning.job import Job
from dash_exp.training.rollout import rollout_bytes
from dash_exp.training.snapshot import is_written_beside

# What is done in a phase, in the order of a run. Where nothing changes from one to the next, it is the same column twice.
PHASES = {
    "load": "models are read into CPU memory, and where the run resumes its snapshot",
    "sample": "completions of training",
    "evaluate": "completions of the test sets",
    "score": "rewards, and a KL in the reward",
    "update": "forward and backward passes",
    "step": "the optimizer step",
    "sync": "the sampler gets the new weights",
    "save": "snapshots and checkpoints",
    "end": "Lightning moves policy, reference and moments into CPU memory",
}
ALL = tuple(PHASES)
TRAINING = ALL[1:-1]

# What is not a tensor, in bytes of one process: libraries; then what is loaded on first use, problems, and what the allocator
# keeps. Of the embedded default: 125 MiB more than its tensors when it is built, and some 100 that stay allocated later.
LIBRARIES, PROCESS = 535 * 2**20, 225 * 2**20


@dataclass(frozen=True)
class Held:
    """A row: `size` bytes on each rank that holds `what`, or on the `first` only."""

    what: str
    size: float
    phases: Sequence[str] = ALL
    first: bool = False


def on_device(job: Job) -> list[Held]:
    """What is on each device, CPU or GPU, in addition to the tensors of the passes."""
    rows = [Held("reward model", s.weight_bytes) for s in job.scorers if s.on_gpu == job.load.on_gpu]
    if job.teacher:  # sampling.teacher: loaded where a trace is missing, and kept
        rows.append(Held("teacher", job.teacher.weight_bytes, TRAINING))
    if job.devices > 1 and not job.sharded:  # distributed.ranks.add_up
        rows.append(Held("exchange", max(job.largest_weight, min(BUCKET, job.trained)) * job.load.gradient_bytes, ("step",)))
    if job.temporaries:  # torch's optimizers on all weights at once, where they are not fused
        rows.append(Held("temporaries", job.trained * job.load.gradient_bytes, ("step",)))
    if sent_from_device(job):  # sampling.server_weights: until the next ones are there
        rows += [
            Held("sent", job.sent_bytes, TRAINING, first=True),
            Held("sent", job.sent_bytes, ("sync",), first=True),
        ]
    return rows


def in_cpu_memory(job: Job) -> list[Held]:
    """What is in CPU memory, whatever the device is."""
    load, own = job.load, stale_rows(job)
    rows = [
        Held("libraries", LIBRARIES),
        Held("process", PROCESS),
        Held("graders", job.grading, TRAINING),
        # training.shares: every rank gets all completions
        Held("rollouts", rollout_bytes(job.completions, job.completions * job.lengths.longest), TRAINING),
        *of_snapshots(job),
        # sampling.refresh: on every rank; of a sharded policy on the first, and where they are stale rows on the others
        Held("earlier weights", kept_versions(job) * (job.trained_bytes - own), first=job.sharded),
        Held("earlier weights", kept_versions(job) * own),
    ]
    if job.sharded:  # training.record.save_model: whole weights, gathered on the first rank
        rows.append(Held("gathered to save", job.trained_bytes, ("save",), first=True))
        if load.adapters and job.sampler.kind == "vllm_server":  # models.adapter.keep_base
            rows.append(Held("base weights", job.model_bytes, first=True))
    if job.sampler.kind == "vllm_server":
        rows += for_servers(job)
    return rows


def in_cpu_memory_beside_gpus(job: Job) -> list[Held]:
    """What is in CPU memory only because the devices are GPUs."""
    load, at_the_ends = job.load, ("load",) if job.sharded else ("load", "end")  # models.sharded: it stays on the devices
    reference = load.reference_copy * job.model_bytes
    rows = [
        Held("policy", job.model_bytes, at_the_ends),  # models.loading
        Held("reference", reference, ("load",) if load.reference_in_reward else at_the_ends),
        Held("moments", job.trained * load.moment_bytes / load.shards, ("end",)),
        *(Held("reward model", s.weight_bytes, ("load",) if s.on_gpu else ALL) for s in job.scorers),
    ]
    if not job.sharded:  # training.record.save_model: safetensors copies what is on a GPU
        rows.append(Held("gathered to save", job.trained_bytes, ("save",), first=True))
    if job.sampler.beside and job.weights_kept_asleep:  # sampling.engine.sleep_level
        rows.append(Held("vLLM asleep", job.engine_weight_bytes, ("update", "step", "save")))
    return rows


def for_servers(job: Job) -> list[Held]:
    """Weights in a folder in shared memory, for all servers: while they are written, the old ones and a copy are there too."""
    body = 0 if sent_from_device(job) else job.sent_bytes
    rows = [Held("sent", body, TRAINING, first=True), Held("sent", 2 * body, ("sync",), first=True)]
    if job.sends_adapter:  # sampling.server_update: the base weights, which all servers read
        base = job.state_numbers * job.load.compute_dtype.itemsize
        rows.append(Held("sent", 2 * base, ("sync",), first=True))
    return rows


def sent_from_device(job: Job) -> bool:
    """Whether the copy of the weights for servers is on the GPU of the policy: newest weights, which NCCL sends from there."""
    newest = job.staleness == 0 and job.refresh_every == 1 and not job.sharded and not job.sends_adapter
    return job.sampler.kind == "vllm_server" and job.load.on_gpu and job.sampler.transfer != "folder" and newest


def of_snapshots(job: Job) -> list[Held]:
    """What is read where the run resumes, and the copy that a thread writes.

    A sharded policy is planned with snapshots in parts (training.snapshot_parts), so with a disk that all ranks see: what a
    rank reads goes from the file to where it stays, and the copy is that of its share.
    """
    if job.sharded:
        beside, older = written_beside(job) / job.load.shards, (kept_versions(job) - 1) * (stale_rows(job) > 0)
        return [
            Held("snapshot beside", beside * job.snapshot_bytes, TRAINING),
            Held("snapshot beside", beside * older * job.trained_bytes, TRAINING, first=True),  # which has the whole of them
        ]
    beside, received = written_beside(job), received_bytes(job)
    return [
        # training.snapshot: all of it on the first rank, which reads it, until the optimizer has it
        Held("snapshot", job.resumes * received, ("load",)),
        Held("snapshot", job.resumes * (job.snapshot_bytes - received), ("load",), first=True),
        Held("snapshot beside", beside * job.snapshot_bytes, TRAINING, first=True),
    ]


def received_bytes(job: Job) -> int:
    """Bytes of the snapshot that each rank has at a time at most: the weights, and when the policy has them the moments; and
    the 32-bit copies.
    """
    copies = job.trained * 4 * job.load.master_weights
    return max(job.trained_bytes, job.trained * job.load.moment_bytes) + copies


def written_beside(job: Job) -> bool:
    """Whether a thread writes snapshots from a copy of the weights, which can then be there in every phase of training."""
    return job.saves and is_written_beside(job.snapshot_bytes / job.load.shards, in_cpu_memory=not job.load.on_gpu)


def stale_rows(job: Job) -> float:
    """Bytes of an earlier version of sharded weights that a rank beside the first keeps for snapshots: its rows."""
    is_stale = job.staleness > 0 or job.refresh_every != 1
    return job.trained_bytes / job.load.shards if job.sharded and is_stale else 0


def kept_versions(job: Job) -> int:
    """How many versions of the trained weights `sampling.refresh` holds at most: while the next one is copied, and before those
    that no step needs any more are dropped.
    """
    every_version = job.sharded and job.sampler.kind == "vllm_server"  # which are gathered for the servers
    if not every_version and (job.sampler.kind in ("hf", "none") or (job.staleness == 0 and job.refresh_every == 1)):
        return 0
    if job.refresh_every is None:
        return 3 if every_version else 1
    between = 1 if every_version and job.refresh_every > 1 else 0  # the newest before this one, for evaluation
    return math.ceil((job.staleness + 1) / job.refresh_every) + 1 + between


def added_up(rows: Iterable[Held], phase: str, ranks: int = 1) -> dict[str, float]:
    """Bytes by `what` in a phase, of the first rank or of all `ranks` of a machine."""
    found: dict[str, float] = {}
    for row in rows:
        if phase in row.phases and row.size:
            found[row.what] = found.get(row.what, 0.0) + row.size * (1 if row.first else ranks)
    return found
