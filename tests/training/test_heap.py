"""Memory that is freed in the middle of the heap goes back to the system, and not too often."""

import ctypes
import gc
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dash_exp.training import heap

glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs the C library glibc")


def resident() -> float:
    """MiB."""
    return heap.resident_pages() * os.sysconf("SC_PAGESIZE") / 2**20


@glibc
def test_gaps_between_tensors_are_given_back():
    """200 MiB of tensors of 1 MiB, of which every tenth stays. What other tests left in the heap is given back before them."""
    del (large := [torch.ones(2**23 - 2**12)])[:]  # 32 MiB: from here on glibc puts smaller ones into the heap
    gc.collect()
    heap.trim()
    tensors = [torch.ones(2**18) for _ in range(200)]
    kept = tensors[::10]
    before = resident()
    del tensors
    heap.trim()
    assert before - resident() == pytest.approx(180, abs=20)
    assert large == [] and all(float(t.sum()) == 2**18 for t in kept)


@pytest.mark.parametrize(("device", "least_s", "times"), [("cpu", 0.0, 3), ("cpu", 1000.0, 1), ("cuda", 0.0, 0)])
def test_it_is_given_back_between_phases_on_a_cpu(device, least_s, times, monkeypatch):
    calls = []
    monkeypatch.setattr(heap, "trim", lambda: calls.append(1))
    monkeypatch.setattr(heap.time, "perf_counter", lambda: 5000.0)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    callback = heap.Heap(least_s)
    callback.on_train_batch_start(trainer, None, None, 0)
    callback.on_train_epoch_end(trainer, None)
    callback.on_validation_end(trainer, None)
    assert len(calls) == times


@pytest.mark.parametrize(("device", "times"), [("cpu", 2), ("cuda", 0)])
def test_it_is_given_back_between_passes_that_leave_the_process_a_fifth_larger(device, times, monkeypatch):
    calls, now = [], [5000.0]
    monkeypatch.setattr(heap, "STATM", Path(__file__))  # a file that is there on every system
    monkeypatch.setattr(heap, "trim", lambda: calls.append(1))
    monkeypatch.setattr(heap.time, "perf_counter", lambda: now[0])
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    callback = heap.Heap(least_s=20.0)

    def passes(*pages):
        for count in pages:
            monkeypatch.setattr(heap, "resident_pages", lambda count=count: count)
            callback.on_after_backward(trainer, None)
            now[0] += 15

    passes(1000, 1100, 1199)  # not a fifth more
    assert not calls
    passes(1300, 1300)  # the second one within 20 seconds
    assert len(calls) == times / 2
    callback.on_train_epoch_end(trainer, None)
    calls.clear()
    callback.on_train_batch_start(trainer, None, None, 1)
    calls.clear()
    now[0] += 100
    passes(2000, 2300)  # another batch begins at another size
    assert not calls
    passes(2500, 900, 2500, 1081)
    assert len(calls) == times
