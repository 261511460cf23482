"""Makes the tokenizer of `tiny`: one token per byte. `python make_tokenizer.py FOLDER`.

Its class is that of the model's architecture. Transformers and vLLM choose a tokenizer's class by the model type that they
find next to it, and the class of Qwen2 would quietly drop the spaces of a tokenizer that is not byte-level.
"""

import sys

from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer


def byte_tokenizer() -> Qwen2Tokenizer:
    """<pad> 0, <eos> 1, then the 256 bytes, with no merges. Any text has tokens, and they give it back."""
    tokens = ["<pad>", "<eos>", *sorted(ByteLevel.alphabet())]
    return Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        unk_token=None,  # type: ignore[arg-type]  # it has no use for one
        bos_token=None,
        eos_token="<eos>",
        pad_token="<pad>",
        padding_side="left",
    )


if __name__ == "__main__":
    byte_tokenizer().save_pretrained(sys.argv[1])
