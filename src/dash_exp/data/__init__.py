"""Data sets as lists of `Problem`. May import `core`, `models` (for tokens) and `rewards` (to read answers).

One file per data set, with a function that loads one split: `gsm8k.load`, `math.load`, `mbpp.load`, `mbpp_plus.load`,
`humaneval.load`, for your own files and the hub `jsonl.load`, and without files `arithmetic.generate`, `reasoning_gym.load` and
`programs.generate` (of the steps in `program_steps`). `readers` reads files and the hub, `rows` checks fields of rows; `order`
says which problems an outer step takes, `prompts` makes tokens of them, and `digests` tells whether they have changed.
"""
