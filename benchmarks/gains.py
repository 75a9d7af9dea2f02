"""What gains cost: against a bare forward pass, run_with_cache and nnsight on one model; streamed, against accelerate's disk offload.

    python benchmarks/gains.py MODEL_FOLDER [--repeats 5] [--skip-stream] [--blocks 3] [--width 5120] [--threads 1] [--folder DIR]

The first table takes one batch through each way side by side, in turn, and prints the least time and the median processor time of each. The
second writes blocks of Pythia-12B's shape in half precision to disk and streams them for 1, 8 and 64 prompts: time, peak anonymous memory,
and the bound: the time of reading the blocks from this disk's cache, casting them to fp32 and multiplying, measured alone. Few blocks
stand for 36.
"""

import argparse
import gc
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from wallprobe import models
from wallprobe.hooks.gain_report import Settings
from wallprobe.hooks.gains import measure_norms
from wallprobe.hooks.prompt_sets import PromptSet, prompt_set
from wallprobe.hooks.streaming import GIB, anonymous_bytes, estimate_bytes, stream_gains
from wallprobe.streamed import open_streamed

CONSOLE = Console(width=120)
SITES = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post", "ln1.hook_out", "ln2.hook_out")
TOKENS = 8  # of a synthetic prompt


class Peak(threading.Thread):
    """Peak anonymous memory while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        gc.collect()
        self.start_bytes = anonymous_bytes() or 0
        self.peak, self.over = self.start_bytes, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.01):
            self.peak = max(self.peak, anonymous_bytes() or 0)

    def stop(self) -> float:
        self.over.set()
        self.join()
        return self.peak / GIB


def side_by_side(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float, float]]:
    """Least seconds, median processor seconds and peak anonymous GiB of each way, taken in turn."""
    wall: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    peaks = dict.fromkeys(ways, 0.0)
    for turn in range(repeats + 1):
        for name, way in ways.items():
            watch = Peak() if turn == 0 else None  # it takes processor time itself
            if watch is not None:
                watch.start()
            start, spent = time.perf_counter(), time.process_time()
            way()
            if watch is not None:
                peaks[name] = watch.stop()
            else:
                wall[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - spent)
    return {name: (min(wall[name]), statistics.median(processor[name]), peaks[name]) for name in ways}


def overhead(source: str, repeats: int, copies: int) -> None:
    """The first table."""
    loaded = models.load(source)
    model: Any = loaded.model
    prompts = prompt_set(loaded)
    shortest = min(map(len, prompts.tokens))
    tokens = torch.stack([row[:shortest] for row in prompts.tokens]).repeat(copies, 1)
    mask = torch.ones_like(tokens)
    names = {f"blocks.{layer}.{site}" for layer in range(loaded.n_layers) for site in SITES}

    def bare() -> None:
        with torch.inference_mode():
            model(tokens, return_type=None, attention_mask=mask)

    def cached(chosen: set[str] | None) -> Callable[[], object]:
        def run() -> None:
            with torch.inference_mode():
                _, cache = model.run_with_cache(
                    tokens, names_filter=None if chosen is None else lambda name: name in chosen, attention_mask=mask
                )
                for name, value in cache.items():
                    if name in names:
                        value.norm(dim=-1)

        return run

    ways: dict[str, Callable[[], object]] = {
        "bare forward": bare,
        "wallprobe gains": lambda: measure_norms(loaded, tokens),
        "run_with_cache, six hooks a layer": cached(names),
        "run_with_cache, everything": cached(None),
    }
    ways |= nnsight_way(source, loaded, tokens)
    found = side_by_side(ways, repeats)
    heads = ("way", "least ms", "over bare", "median processor ms", "over bare", "peak anonymous GiB")
    table = Table(*heads, title=f"{loaded.n_layers} layers, {tuple(tokens.shape)} tokens, {torch.get_num_threads()} threads")
    bare = found["bare forward"]
    for name, (seconds, processor, peak) in found.items():
        over = [f"{part / whole - 1:+.1%}" for part, whole in zip((seconds, processor), bare, strict=False)]
        table.add_row(name, f"{1e3 * seconds:.1f}", over[0], f"{1e3 * processor:.1f}", over[1], f"{peak:.2f}")
    CONSOLE.print(table)


def nnsight_way(source: str, loaded: models.Loaded, tokens: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Norms of the same six vectors by a trace of the transformers model; nothing where nnsight is not installed or knows other names."""
    try:
        from nnsight import NNsight
    except ImportError:
        return {}
    inner = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    if not hasattr(inner, "model"):
        return {}
    traced = NNsight(inner)

    def run() -> None:
        saved = []
        with torch.inference_mode(), traced.trace(tokens):
            for layer in traced.model.layers:
                given, attn = layer.input_layernorm.output, layer.self_attn.output[0]
                read, mlp, out = layer.post_attention_layernorm.output, layer.mlp.output, layer.output
                saved.append([value.norm(dim=-1).save() for value in (given, attn, read, mlp, out)])

    return {"nnsight trace": run}


def write_blocks(folder: Path, blocks: int, width: int) -> None:
    """A GPT-NeoX of that width in half precision, a shard a block, written block by block."""
    from tests.hooks.tiny_models import save_tokenizer

    heads = 40 if width % 40 == 0 else 8
    config = GPTNeoXConfig(
        vocab_size=512,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
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
        shapes = {name: value.shape for name, value in AutoModelForCausalLM.from_config(config).state_dict().items()}
    index: dict[str, str] = {}
    parts: dict[str, list[str]] = {}
    for name in shapes:
        parts.setdefault(name.split("layers.")[1].split(".")[0] if "layers." in name else "rest", []).append(name)
    for part, names in parts.items():
        file = f"model-{part}.safetensors"
        tensors = {}
        for name in names:
            value = (
                torch.empty(shapes[name], dtype=torch.float16).normal_(0.0, 0.02) if len(shapes[name]) > 1 else torch.zeros(shapes[name])
            )
            tensors[name] = torch.ones(shapes[name], dtype=torch.float16) if "norm.weight" in name else value.half()
        save_file(tensors, folder / file, {"format": "pt"})
        index |= dict.fromkeys(tensors, file)
        del tensors
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def bound(folder: Path, blocks: int, rows: int) -> tuple[float, float, float]:
    """Seconds for reading every block's bytes, for casting them, and for the bare products with that many tokens."""
    read = cast = product = 0.0
    for layer in range(blocks):
        path = folder / f"model-{layer}.safetensors"
        start = time.perf_counter()
        with path.open("rb") as handle:
            while handle.read(1 << 24):
                pass
        read += time.perf_counter() - start
        for value in load_file(path).values():
            start = time.perf_counter()
            full = value.float()
            cast += time.perf_counter() - start
            if full.ndim == 2:
                x = torch.randn(rows, full.shape[1])
                start = time.perf_counter()
                x @ full.T
                product += time.perf_counter() - start
    return read, cast, product


def offload(folder: Path, blocks: int, batches: list[torch.Tensor]) -> float | None:
    """Seconds of one pass a prompt through accelerate's disk offload; None where accelerate is not installed."""
    try:
        import accelerate  # noqa: F401
    except ImportError:
        return None
    places: dict[str, Any] = {f"gpt_neox.layers.{layer}": "disk" for layer in range(blocks)}
    rest = ("gpt_neox.embed_in", "gpt_neox.emb_dropout", "gpt_neox.rotary_emb", "gpt_neox.final_layer_norm", "lm_head", "embed_out")
    places |= dict.fromkeys(rest, "cpu")
    with tempfile.TemporaryDirectory() as spare:
        reader: Any = AutoModelForCausalLM
        model = reader.from_pretrained(folder, device_map=places, offload_folder=spare, dtype=torch.float32)
        start = time.perf_counter()
        with torch.inference_mode():
            for row in batches:
                model(row[None])
        return time.perf_counter() - start


def streaming(folder: Path, blocks: int, width: int) -> None:
    """The second table."""
    write_blocks(folder, blocks, width)
    model = open_streamed(str(folder))
    settings = Settings.make("sublayer", "ratio_of_means", "all")
    title = f"{blocks} blocks of width {width} (Pythia-12B has 36 of 5120), {TOKENS} tokens a prompt, {torch.get_num_threads()} threads"
    table = Table(
        "prompts",
        "streamed, s",
        "read + cast + multiply, s",
        "times bound",
        "peak anonymous GiB",
        "stated GiB",
        "accelerate, s",
        title=title,
    )
    first = 0.0
    for count in (1, 8, 64):
        rows = [torch.randint(2, 512, (TOKENS,), generator=torch.Generator().manual_seed(number)) for number in range(count)]
        texts = tuple(str(number) for number in range(count))
        prompts = PromptSet("synthetic", texts, tuple(rows), tuple(tuple(map(str, row.tolist())) for row in rows))
        read, cast, product = bound(folder, blocks, count * TOKENS)
        watch = Peak()
        watch.start()
        start = time.perf_counter()
        stream_gains(model, prompts, settings)
        seconds = time.perf_counter() - start
        peak = watch.stop()
        first = first or seconds
        peer = offload(folder, blocks, rows[:8])
        told = "-" if peer is None else f"{peer * count / min(count, 8):.1f}{' (8 times 8)' if count > 8 else ''}"
        least = read + cast + product
        parts = f"{least:.1f} ({read:.1f} + {cast:.1f} + {product:.1f})"
        table.add_row(
            str(count),
            f"{seconds:.1f}",
            parts,
            f"{seconds / least:.2f}",
            f"{peak:.2f}",
            f"{estimate_bytes(model, prompts) / GIB:.2f}",
            told,
        )
    CONSOLE.print(table)
    CONSOLE.print(f"64 prompts take {seconds / first:.2f} times one prompt's time")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a Hugging Face folder, such as SmolLM2-135M's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--copies", type=int, default=1, help="of the four prompts, for a larger batch")
    parser.add_argument("--skip-stream", action="store_true")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--width", type=int, default=5120)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the synthetic blocks go; a temporary folder by default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.model:
        overhead(options.model, options.repeats, options.copies)
    if not options.skip_stream:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            streaming(Path(folder), options.blocks, options.width)


if __name__ == "__main__":
    main()
