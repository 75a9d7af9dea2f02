"""Streaming a checkpoint of Pythia-12B's shape from a cold disk: time, anonymous memory, what bounds it, and accelerate's disk offload.

    python benchmarks/streaming.py [--blocks 36] [--width 5120] [--prompts 1,8,64] [--tokens 8] [--threads 2] [--folder DIR] [--skip-peer]

Writes blocks in half precision (22.7 GB for 36 of width 5120; kept in DIR for the next time, where one is given), and drops them from the
system's cache before each measurement. The bound is the larger of two: the time this disk takes to give the blocks' bytes, and the time of
their matrix products alone, in fp32, by the quicker of torch's two ways, with weights already in fp32 in memory. The peer takes all
prompts, which are of one length, as one batch.
"""

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from wallprobe.hooks.attach.prompt_sets import PromptSet
from wallprobe.hooks.gains.report import Settings
from wallprobe.hooks.gains.streaming import GIB, anonymous_bytes, estimate_bytes, passes_cache, stream_gains
from wallprobe.models.ahead import Ahead, can_pass_cache
from wallprobe.models.products import available
from wallprobe.models.shards import Shards
from wallprobe.models.streamed import open_streamed

CONSOLE = Console(width=140)
INDEX = "model.safetensors.index.json"


class Peak(threading.Thread):
    """Peak anonymous memory between entering and leaving, GiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gib, self.over = 0.0, threading.Event()

    def __enter__(self) -> "Peak":
        gc.collect()
        self.start()
        return self

    def run(self) -> None:
        while not self.over.wait(0.01):
            self.gib = max(self.gib, (anonymous_bytes() or 0) / GIB)

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def write_blocks(folder: Path, blocks: int, width: int) -> None:
    """A GPT-NeoX of that width in half precision, a shard a block; every block has the first one's numbers under its own names."""
    from tests.hooks.tiny_models import save_tokenizer

    config = GPTNeoXConfig(
        vocab_size=512,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=40 if width % 40 == 0 else 8,
        intermediate_size=4 * width,
        max_position_embeddings=2048,
        rotary_pct=0.25,
        use_parallel_residual=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    config.architectures, config.dtype = ["GPTNeoXForCausalLM"], torch.float16
    config.save_pretrained(folder)
    save_tokenizer(folder)
    with torch.device("meta"):
        shapes = {
            name: value.shape for name, value in AutoModelForCausalLM.from_config(config, trust_remote_code=False).state_dict().items()
        }

    def drawn(name: str) -> torch.Tensor:
        if len(shapes[name]) > 1:
            return torch.empty(shapes[name], dtype=torch.float16).normal_(0.0, 0.02)
        return (torch.ones if "norm.weight" in name else torch.zeros)(shapes[name], dtype=torch.float16)

    index: dict[str, str] = {}
    first = {name.split("layers.0.")[1]: drawn(name) for name in shapes if "layers.0." in name}
    for layer in range(blocks):
        tensors = {f"gpt_neox.layers.{layer}.{name}": value for name, value in first.items()}
        save_file(tensors, folder / f"model-{layer}.safetensors", {"format": "pt"})
        index |= dict.fromkeys(tensors, f"model-{layer}.safetensors")
    rest = {name: drawn(name) for name in shapes if "layers." not in name}
    save_file(rest, folder / "model-rest.safetensors", {"format": "pt"})
    index |= dict.fromkeys(rest, "model-rest.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def cool(folder: Path) -> None:
    """Drop the checkpoint's pages from the system's cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_seconds(folder: Path) -> float:
    """What this disk takes to give every shard's bytes, past the system's cache where it can be, nothing done with them."""
    cool(folder)
    with Shards(folder) as shards:
        blocks = [[name for name, own in shards.files.items() if own == file] for file in sorted(set(shards.files.values()))]
        with Ahead(shards, blocks, past_cache=can_pass_cache(shards)) as ahead:
            start = time.perf_counter()
            for _ in blocks:
                ahead.take()
            return time.perf_counter() - start


def product_seconds(width: int, rows: int, blocks: int) -> float:
    """Matrix products of that many blocks for so many rows: the least of torch's two ways, of three rounds, of one block, times blocks."""
    shapes = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
    weights = [torch.empty(shape).normal_(0.0, 0.02) for shape in shapes]
    inputs = [torch.randn(rows, shape[1]) for shape in shapes]
    ways: list[Any] = [F.linear]
    if available():
        ways.append(lambda x, weight: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""))
    least = float("inf")
    with torch.inference_mode():
        for way in ways * 3:
            start = time.perf_counter()
            for x, weight in zip(inputs, weights, strict=True):
                way(x, weight)
            least = min(least, time.perf_counter() - start)
    return blocks * least


def offload(folder: Path, blocks: int, tokens: torch.Tensor) -> tuple[float, float] | None:
    """Seconds and peak GiB of one pass through accelerate's disk offload; None where accelerate is not installed."""
    try:
        import accelerate  # noqa: F401
    except ImportError:
        return None
    places: dict[str, Any] = {f"gpt_neox.layers.{layer}": "disk" for layer in range(blocks)}
    rest = ("gpt_neox.embed_in", "gpt_neox.emb_dropout", "gpt_neox.rotary_emb", "gpt_neox.final_layer_norm", "lm_head", "embed_out")
    places |= dict.fromkeys(rest, "cpu")
    reader: Any = AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as spare:
        model = reader.from_pretrained(folder, device_map=places, offload_folder=spare, dtype=torch.float32, trust_remote_code=False)
        cool(folder)
        with Peak() as peak, torch.inference_mode():
            start = time.perf_counter()
            model(tokens)
            seconds = time.perf_counter() - start
    return seconds, peak.gib


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Print the table."""
    if not (folder / INDEX).is_file():
        CONSOLE.print(f"writing {options.blocks} blocks of width {options.width} to {folder}")
        write_blocks(folder, options.blocks, options.width)
    model = open_streamed(str(folder))
    settings = Settings.make("sublayer", "ratio_of_means", "all")
    disk = disk_seconds(folder)
    read = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    title = (
        f"{options.blocks} blocks of width {options.width} (Pythia-12B has 36 of 5120), {read / 1e9:.1f} GB in half precision, "
        f"{options.tokens} tokens a prompt, {torch.get_num_threads()} threads; this disk gives {read / disk / 1e9:.2f} GB/s"
    )
    heads = (
        "prompts",
        "streamed, s",
        "disk alone, s",
        "products alone, s",
        "over the larger",
        "peak GiB",
        "stated GiB",
        "accelerate, s",
        "its GiB",
    )
    table, first = Table(*heads, title=title), 0.0
    for count in options.prompts:
        rows = [torch.randint(2, 512, (options.tokens,), generator=torch.Generator().manual_seed(number)) for number in range(count)]
        texts = tuple(str(number) for number in range(count))
        prompts = PromptSet("synthetic", texts, tuple(rows), tuple(tuple(map(str, row.tolist())) for row in rows))
        product = product_seconds(options.width, count * options.tokens, options.blocks)
        gc.collect()
        cool(folder)
        with Peak() as peak:
            start = time.perf_counter()
            stream_gains(model, prompts, settings)
            seconds = time.perf_counter() - start
        first = first or seconds
        peer = None if options.skip_peer else offload(folder, options.blocks, torch.stack(rows))
        told = ("-", "-") if peer is None else (f"{peer[0]:.1f}", f"{peer[1]:.2f}")
        own = (f"{seconds:.1f}", f"{disk:.1f}", f"{product:.1f}", f"{seconds / max(disk, product):.2f}", f"{peak.gib:.2f}")
        table.add_row(str(count), *own, f"{estimate_bytes(model, prompts, past_cache=passes_cache(model, prompts, None)) / GIB:.2f}", *told)
        CONSOLE.print(f"{count} prompts: {seconds:.1f} s, {seconds / first:.2f} times the first row's")
    CONSOLE.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=36)
    parser.add_argument("--width", type=int, default=5120)
    parser.add_argument("--prompts", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 64])
    parser.add_argument("--tokens", type=int, default=8, help="of a prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-peer", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the blocks are kept; a temporary folder by default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as spare:
        folder = options.folder or Path(spare)
        folder.mkdir(parents=True, exist_ok=True)
        measure(folder, options)


if __name__ == "__main__":
    main()
