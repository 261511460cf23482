"""Rewards: from a problem and a completion to a number. May import `core` and `models`.

`base` says what a reward is. Then one file per reward: `exact`, `math`, `code`, `format`, `model`, `reasoning_gym`, and `sums`
of them. Behind `math`: `grading` compares two answers, `workers` calls it in processes with limits (`worker` is what runs in
one). Behind `code`: `programs` finds the program in a completion (`continued`: of code that was begun), `sandbox` runs it in
isolation, with `sandbox_order` (what the judge is asked), `inside` (what runs isolated), `bubblewrap` (the command line) and
`seccomp` (the filter of system calls). Behind `reasoning_gym`: `puzzles`, its tasks and their scores. `patterns`: regular
expressions with a time limit.
"""
