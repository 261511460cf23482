"""The parts that make an algorithm, most of them pure functions. May import `core` and `models`.

`advantages`, `losses`, `weighting` (weights per token, and the denominator of an optimizer step), `selection` (which prompts
are sampled), `filters` (which completions are trained on), `kl` (estimators, and schedules of the coefficient), `kl_penalty`
(the KL as a penalty on the reward). A new idea is one function here and one YAML file in conf/.
"""
