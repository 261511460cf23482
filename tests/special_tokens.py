"""Tokenizers with the habits of those on the hub, made here: special tokens around a text, and tags that are special tokens."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<bos>", "<eos>", "<end of turn>", "<think>", "</think>"]
PAD, BOS, EOS, END, THINK, UNTHINK = range(6)

# Chat templates. Each turn ends with a token of its own, as in Qwen's and Llama's.
TURNS = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '<end of turn>' }}{% endfor %}"
OPENS = "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
CHAT = TURNS + OPENS


def made(before: str = "", behind: str = "", **changes: object) -> PreTrainedTokenizerBase:
    """A tokenizer of bytes with these special tokens, which puts some of them around a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIAL, *alphabet])}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    if before or behind:
        core.post_processor = processors.TemplateProcessing(
            single=f"{before} $A {behind}".strip(), special_tokens=[(t, i) for i, t in enumerate(SPECIAL)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, **{"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", **changes}
    )
