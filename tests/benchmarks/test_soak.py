"""What `benchmarks/soak.py` gives its run, and what it says of its measurements."""

import mmap
import os

import pytest
import soak
from conftest import composed
from soak import Seen


@pytest.mark.parametrize(
    ("given", "model", "data", "reward"),
    [
        ([], "tiny_random", "arithmetic", "FormatReward"),
        (["rollout=vllm"], "tiny_random", "arithmetic", "FormatReward"),
        (["model=smollm2-135m"], "smollm2-135m", "arithmetic", "FormatReward"),
        (["data=reasoning_gym", "data.task=gcd"], "tiny_random", "reasoning_gym", "ReasoningGymReward"),
        (["model=smollm2-135m", "data=gsm8k", "data.path=here"], "smollm2-135m", "gsm8k", "MathReward"),
    ],
)
def test_settings_of_the_small_model_are_left_out_for_another(given, model, data, reward):
    cfg = composed(*soak.settings(given))
    assert (cfg.model.name, cfg.data.name, cfg.reward._target_.rpartition(".")[2]) == (model, data, reward)
    assert cfg.batch.prompts == 8


def test_the_change_by_hand():
    seen = [Seen(10, 100.0, 120.0, 7), Seen(20, 101.0, 121.0, 9), Seen(30, 104.0, 125.0, 8)]
    # 4 MiB in 20 steps: 4096 KiB / 20
    assert soak.change(seen) == "change from step 10 to 30: +4.0 MiB (+204.8 KiB a step), +1 files"


def test_this_process_is_measured():
    memory, highest, files = soak.measured(os.getpid())
    held = mmap.mmap(-1, 2**25)  # new pages, whatever this process has freed before
    held.write(bytes(2**25))
    more, highest_now, _ = soak.measured(os.getpid())
    assert more - memory > 16 and highest_now >= highest > 10 and files > 2 and len(held) == 2**25
