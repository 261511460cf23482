"""A small .gguf file, as llama.cpp's own package writes it. Tests that import this are skipped without that package."""

import numpy as np
import pytest

of_llama_cpp = pytest.importorskip("gguf")
VOCABULARY = ["<unk>", "<s>", "</s>", *map(chr, range(33, 127)), "Ġ", "Ċ", "12"]
NUMBERS = {"context_length": 64, "embedding_length": 32, "feed_forward_length": 64, "block_count": 1, "head_count": 4}
NUMBERS |= {"head_count_kv": 2, "layer_norm_rms_eps": 1e-5, "vocab_size": len(VOCABULARY)}
MATRICES = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
MATRICES |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
EIGHT_BITS = of_llama_cpp.GGMLQuantizationType.Q8_0


def written(path, bos=None):
    """A Llama of one layer with a tied head, its matrices quantised to 8 bits, with a tokenizer of characters.

    `bos`: what the file says about BOS before a text.
    """
    to = of_llama_cpp.GGUFWriter(path, "llama")
    for name, number in NUMBERS.items():
        getattr(to, f"add_{name}")(number)
    to.add_tokenizer_model("gpt2")
    to.add_token_list(VOCABULARY)
    to.add_token_merges(["1 2"])
    to.add_token_types([3] * 3 + [1] * (len(VOCABULARY) - 3))
    to.add_bos_token_id(1)
    to.add_eos_token_id(2)
    if bos is not None:
        to.add_add_bos_token(bos)
    to.add_chat_template("{{ messages[0]['content'] }}")
    rng = np.random.default_rng(0)
    shapes = {f"blk.0.{name}": shape for name, shape in MATRICES.items()} | {"token_embd": (len(VOCABULARY), 32)}
    for name, shape in shapes.items():
        blocks = of_llama_cpp.quantize(rng.normal(0, 0.3, shape).astype(np.float32), EIGHT_BITS)
        to.add_tensor(f"{name}.weight", blocks, raw_dtype=EIGHT_BITS)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        to.add_tensor(f"{name}.weight", np.ones(32, dtype=np.float32))
    to.write_header_to_file()
    to.write_kv_data_to_file()
    to.write_tensors_to_file()
    to.close()
    return path
