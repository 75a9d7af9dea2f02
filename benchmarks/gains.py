"""What measuring gains costs: against a bare forward pass, run_with_cache and nnsight on one model. Streaming: see streaming.py.

    python benchmarks/gains.py MODEL_FOLDER [--repeats 5] [--copies 1] [--threads 1]

One batch goes through each way side by side, in turn; the least time and the median processor time of each are printed.
"""

import argparse
import gc
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from wallprobe import models
from wallprobe.hooks.attach.prompt_sets import prompt_set
from wallprobe.hooks.gains.measure import measure_norms
from wallprobe.hooks.gains.streaming import GIB, anonymous_bytes

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
    inner = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False).eval()
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Hugging Face folder, such as SmolLM2-135M's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--copies", type=int, default=1, help="of the four prompts, for a larger batch")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    overhead(options.model, options.repeats, options.copies)


if __name__ == "__main__":
    main()
