"""A tiny llama as a .gguf file: random weights, byte-level tokenizer."""

from pathlib import Path

import gguf
import numpy as np

WIDTH, HEADS, BLOCKS, INNER, CONTEXT = 32, 4, 2, 64, 24
SPECIAL = ("<s>", "</s>", "<unk>")


def _letters() -> list[str]:
    """The 256 characters that byte-level tokenizers write bytes with."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + number) for number in range(len(hidden))]


def save_gguf(path: Path) -> Path:
    """Write it."""
    words, draw = [*SPECIAL, *_letters(), "th", "the"], np.random.default_rng(7)
    shapes = {"token_embd.weight": (len(words), WIDTH), "output_norm.weight": (WIDTH,), "output.weight": (len(words), WIDTH)}
    for block in range(BLOCKS):
        whole = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
        parts = whole | {"ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}
        parts |= {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
        shapes |= {f"blk.{block}.{name}.weight": shape for name, shape in parts.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(words) - len(SPECIAL)))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    for name, shape in shapes.items():
        writer.add_tensor(name, (draw.normal(size=shape) * 0.3 + (len(shape) == 1)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
