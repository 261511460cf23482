"""Samplers: prompts in, completions out, with Transformers (`hf`), vLLM in this process (`vllm`), vLLM servers
(`vllm_server`), or from traces of a data set (`traces`) or a teacher model (`teacher`). Also how a sampler gets new weights
(`refresh`). May import `core`, `models`, `rewards`, `data`."""
