"""Rewards: from a problem and a completion to a number. May import `core` and `models`.

`base` says what a reward is. Then one file per reward: `exact`, `math`, `code`, `format`, `model`, and `sums` of them. Behind
`math`: `grading` compares two answers, `workers` calls it in processes with limits (`worker` is what runs in one). Behind
`code`: `sandbox` runs programs in isolation, with `sandbox_order` (what the judge is asked), `sandbox_inside` (what runs
isolated), `bubblewrap` (the command line) and `seccomp` (the filter of system calls). `patterns`: regular expressions with a
time limit.
"""
