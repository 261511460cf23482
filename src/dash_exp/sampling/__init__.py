"""Prompts in, completions out: Transformers, vLLM in this process, vLLM servers, written or teacher traces; and how a sampler
gets new weights. May import `core`, `models`, `rewards`, `data`."""
