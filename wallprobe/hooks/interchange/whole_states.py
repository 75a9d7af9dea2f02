"""Ablation of whole states of any decoder: what its predictions lose without a site's output, at all tokens or at one.

A state is put to zero, to its mean, or to another prompt's at the same index. Beside each, the state moved by as much in a random
direction, and a random direction of the state's own norm; the stronger of the two is the control. Effects are of the next token's loss
and of KL(intact || ablated), means over prompts with intervals over them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import models, stats
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.findings import Side, foremost, rounding, side
from wallprobe.hooks.attach import cache, gathering, sites
from wallprobe.hooks.attach.prompt_sets import PromptSet
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

KIND = "ablation_states"
METHODS = ("zero", "mean", "resample")
SITES = ("attn_out", "mlp_out", "resid_pre")  # by default
INDICES = ("all", "last")
FIGURES = 1 << 25  # logits of a pass at most
METRICS: Mapping[str, str] = {
    "loss": "how much the loss of the next token rises",
    "kl": "KL(intact prediction || ablated prediction)",
}
ARMS: Mapping[str, str] = {
    "": "the state ablated",
    "_moved": "the state moved by as much in a random direction",
    "_random": "a random direction of the state's own norm in its place",
}


@dataclass(frozen=True)
class Request:
    """What to ablate.

    Attributes:
        sites: some of `models.SITES`, `z.3` for a head, `heads` for each.
        layers: one at a time; None for all.
        methods: some of `METHODS`.
        index: "all": every token at once, read at every token but the last; "last": the last token that has a next one, read there.
        seed: of donors, random directions and bootstrap.
    """

    sites: tuple[str, ...] = SITES
    layers: tuple[int, ...] | None = None
    methods: tuple[str, ...] = METHODS
    index: str = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no model has.

        Raises:
            UnknownNameError: for a site there is not.
            ConfigError: for a method or index there is not.
        """
        for site in self.sites:
            if site != sites.HEADS and sites.head_of(site) is None:
                models.hook_name(0, "resid_pre" if site == "resid" else site)
        wrong = [method for method in self.methods if method not in METHODS]
        if wrong or not self.methods or not self.sites:
            raise ConfigError(f"--method {wrong[0] if wrong else ''} is none of {', '.join(METHODS)}")
        if self.index not in INDICES:
            raise ConfigError(f"--index {self.index} is none of {', '.join(INDICES)}: prompts differ in length")


Grid = dict[tuple[str, int, str], Tensor]  # (site, layer, arm) -> [metric prompt]


def ablate_states(
    loaded: models.Loaded,
    prompts: PromptSet,
    request: Request | None = None,
    *,
    device: str = "cpu",
    follow: gathering.Follow = gathering.silent,
) -> Result:
    """Ablate whole states of a model, a site and layer at a time.

    Args:
        loaded: the model.
        prompts: texts; those of one token are left out.
        request: what to ablate.
        device: of the model, for the manifest.
        follow: told (cells done, of all).

    Returns:
        Result of kind "ablation_states", table over site x layer x replacement.

    Raises:
        ConfigError: for a layer or head there is not, no prompt of two tokens, or no second prompt to take a state from.
        InstrumentError: if a hook did not fire exactly once, an ablation changed nothing, or putting a state back changed something.
    """
    watch, request = Stopwatch(), request or Request()
    rows = [row for row in prompts.tokens if len(row) > 1]
    if not rows:
        raise ConfigError(f"no prompt of {prompts.name} has two tokens; give longer ones")
    n_heads = int(getattr(loaded.model.cfg, "n_heads", 0))
    named = sites.expand(["resid_pre" if site == "resid" else site for site in request.sites], n_heads)
    layers = list(gathering.hooks_of(loaded, "resid_pre", request.layers))
    donors = _donors(rows, request) if "resample" in request.methods else [0] * len(rows)
    grid: Grid = {}
    largest = 0.0
    for layer in layers:
        hooks = {site: models.hook_name(layer, sites.module_site(site)) for site in named}
        states = _states(loaded, rows, sorted(set(hooks.values())))
        for site, hook in hooks.items():
            work = _Cell(loaded, rows, hook, sites.head_of(site), n_heads, states[hook], donors, request, (site, layer))
            found, changed = work.measure()
            grid |= {(site, layer, arm): values for arm, values in found.items()}
            largest = max(largest, changed)
            follow(len({key[:2] for key in grid}), len(layers) * len(named))
    data = _arrays(loaded, prompts, request, (list(named), layers), grid)
    manifest = provenance(
        config={"model": loaded.name, "weight_hash": loaded.weight_hash, "prompts": prompts.name, "data_hash": prompts.data_hash}
        | {"sites": list(named), "layers": layers, "methods": list(request.methods), "index": request.index, "seed": request.seed},
        device=device,
        dtype="float32 model, float64 figures",
        watch=watch,
        subject=loaded.name,
        weight_hash=loaded.weight_hash,
        weight_processing=loaded.processing,
        seeds={"controls": request.seed, "prompts": prompts.seed},
    )
    return Result(KIND, data, ("site", "layer", "replacement"), _summary(data, len(rows), largest), manifest)


def _donors(rows: Sequence[Int[Tensor, "_"]], request: Request) -> list[int]:
    """For each prompt another one, of other tokens, whose state it is given: the next in a drawn circle."""
    order = torch.randperm(len(rows), generator=generator(request.seed, "donor prompts")).tolist()
    found = [0] * len(rows)
    for place, row in enumerate(order):
        others = (order[(place + step) % len(order)] for step in range(1, len(order)))
        donor = next((one for one in others if not torch.equal(rows[one], rows[row])), None)
        if donor is None:
            raise ConfigError("resample needs a state of another prompt, and there is one prompt alone; give more, or --method zero,mean")
        found[row] = donor
    return found


def _states(loaded: models.Loaded, rows: Sequence[Int[Tensor, "_"]], names: list[str]) -> dict[str, list[Tensor]]:
    """Each prompt's states [index, width] at each hook."""
    found: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(rows) for name in names}
    for some, tokens in gathering.by_length(rows):
        fired: dict[str, Tensor] = {}
        recorders = {name: cache.recorder(fired, name, lambda value: value.flatten(2)) for name in names}
        cache.run(loaded, tokens, recorders, stop_at_layer=cache.layers_needed(names))
        cache.check_fired(loaded, names, fired)
        for name in names:
            for number, row in enumerate(some):
                found[name][row] = fired[name][number]
    return found


@dataclass(frozen=True)
class _Cell:
    """A site and layer, all arms of which go through the model side by side."""

    loaded: models.Loaded
    rows: Sequence[Tensor]
    hook: str
    head: int | None
    n_heads: int
    states: list[Tensor]
    donors: list[int]
    request: Request
    place: tuple[str, int]

    @property
    def arms(self) -> tuple[str, ...]:
        return (*self.request.methods, *(f"{method}_moved" for method in self.request.methods), "random")

    def measure(self) -> tuple[dict[str, Tensor], float]:
        """Effects [metric, prompt] of each arm, and what putting the state back changed."""
        bounds = models.limits(self.loaded)
        most = max(1, FIGURES // (bounds.vocabulary * len(self.arms)))
        found = {arm: torch.zeros(len(METRICS), len(self.rows), dtype=torch.float64) for arm in self.arms}
        self_change, moved = 0.0, dict.fromkeys(self.request.methods, 0.0)
        for first, (some, tokens) in enumerate(gathering.by_length(self.rows, most)):
            read = slice(tokens.shape[1] - 2, tokens.shape[1] - 1) if self.request.index == "last" else slice(0, tokens.shape[1] - 1)
            targets = [self._targets(row) for row in some]
            for method in self.request.methods:
                gaps = [(made[method] - self._part(self.states[row]))[read] for made, row in zip(targets, some, strict=True)]
                moved[method] = max(moved[method], *(float(gap.abs().max()) for gap in gaps))
            stacked = {arm: torch.stack([made[arm] for made in targets]) for arm in self.arms}
            clean = cache.run(self.loaded, tokens, {})[:, read].cpu().double().log_softmax(-1)
            if not first:
                self_change = self._put_back(tokens)
            said = self._pass(tokens.repeat(len(self.arms), 1), torch.cat([stacked[arm] for arm in self.arms]), read)
            following = tokens[:, 1:][:, read, None]
            for arm, log in zip(self.arms, torch.split(said, len(some)), strict=True):
                after = log.cpu().double().log_softmax(-1)
                loss = (clean - after).gather(-1, following)[..., 0].mean(1)
                kl = (clean.exp() * (clean - after)).sum(-1).mean(1)
                found[arm][:, some] = torch.stack([loss, kl])
        idle = [method for method, size in moved.items() if size == 0.0]
        if idle:
            raise InstrumentError(
                f"{idle[0]}-ablating {self.hook} changed nothing: its states are that already; leave the site or method out"
            )
        return found, self_change

    def _part(self, state: Tensor) -> Tensor:
        """The state itself, or a head's part of it."""
        if self.head is None:
            return state
        width = state.shape[-1] // self.n_heads
        return state[..., self.head * width : (self.head + 1) * width]

    def _targets(self, row: int) -> dict[str, Tensor]:
        """What each arm puts in the place of a prompt's state [index, width]."""
        own = self._part(self.states[row])
        made: dict[str, Tensor] = {}
        for method in self.request.methods:
            if method == "zero":
                made[method] = torch.zeros_like(own)
            elif method == "mean":
                first, rest = self._means()
                made[method] = torch.cat([first[None], rest.expand(len(own) - 1, -1)])
            else:
                donor = self._part(self.states[self.donors[row]])
                made[method] = donor[torch.arange(len(own)).clamp(max=len(donor) - 1)]  # beyond its end, its last
        for method in self.request.methods:
            made[f"{method}_moved"] = own + self._noise(row, method, own.shape) * (made[method] - own).norm(dim=-1, keepdim=True)
        made["random"] = self._noise(row, "random", own.shape) * own.norm(dim=-1, keepdim=True)
        return made

    def _means(self) -> tuple[Tensor, Tensor]:
        """Mean state over prompts: of first tokens, which are sinks and unlike the others, and of all others."""
        parts = [self._part(state) for state in self.states]
        return torch.stack([part[0] for part in parts]).mean(0), torch.cat([part[1:] for part in parts]).mean(0)

    def _noise(self, row: int, arm: str, shape: torch.Size) -> Tensor:
        """Unit vectors that depend on the prompt and the cell, not on the batch."""
        drawn: Tensor = torch.randn(shape, generator=generator(self.request.seed, "ablation direction", *self.place, arm, row))
        size: Tensor = torch.linalg.vector_norm(drawn, dim=-1, keepdim=True)
        return drawn / size

    def _pass(self, tokens: Tensor, target: Tensor | None, read: slice) -> Tensor:
        """Logits at the read tokens with the target in place; None puts back what stands there."""
        fired: list[str] = []

        def patch(value: Tensor, hook: Any) -> Tensor:
            fired.append(self.hook)
            made = value.clone(memory_format=torch.contiguous_format)
            if target is not None:
                at = slice(None) if self.request.index == "all" else read
                part = self._part(made.view(*made.shape[:2], -1))
                part[:, at] = target[:, at].to(part)
            return made

        said = cache.run(self.loaded, tokens, {self.hook: patch})
        if len(fired) != 1:
            raise InstrumentError(f"hook {self.hook} of {self.loaded.name} fired {len(fired)} times in one forward pass")
        return said[:, read]

    def _put_back(self, tokens: Tensor) -> float:
        """What the state put back changed; it must be nothing, to the bit."""
        everywhere = slice(0, tokens.shape[1])
        changed = float((self._pass(tokens, None, everywhere) - cache.run(self.loaded, tokens, {})).abs().max())
        if changed != 0.0:
            raise InstrumentError(f"putting the state back at {self.hook} changed the logits by {changed}")
        return changed


def _arrays(loaded: models.Loaded, prompts: PromptSet, request: Request, places: tuple[list[str], list[int]], grid: Grid) -> Any:
    """Means and bounds of every metric and arm, and what the ablation does beyond the stronger control."""
    named, layers = places
    count = next(iter(grid.values())).shape[1]
    weights = stats.resamples(count, generator(request.seed, "ablation bootstrap", count))
    shape = (len(named), len(layers), len(request.methods))
    made: dict[str, np.ndarray[Any, Any]] = {}

    def put(name: str, at: tuple[int, int, int], values: Float[Tensor, " prompt"]) -> None:
        low, high = stats.interval(weights @ values)
        for end, figure in (("", values.mean()), ("_low", low), ("_high", high)):
            made.setdefault(f"{name}{end}", np.full(shape, np.nan))[at] = float(figure)

    for at in np.ndindex(*shape):
        site, layer, method = named[at[0]], layers[at[1]], request.methods[at[2]]
        for metric, name in enumerate(METRICS):
            arms = {"": method, "_moved": f"{method}_moved", "_random": "random"}
            values = {suffix: grid[site, layer, arm][metric] for suffix, arm in arms.items()}
            for suffix, one in values.items():
                put(f"{name}{suffix}", (at[0], at[1], at[2]), one)
            controls = ("_moved", "_random")
            means = [float(values[suffix].mean()) for suffix in controls]
            strongest = controls[foremost(means, rounding(1.0, *means)) or 0]
            put(f"{name}_control", (at[0], at[1], at[2]), values[strongest])
            put(f"{name}_excess", (at[0], at[1], at[2]), values[""] - values[strongest])
    dims = ("site", "layer", "replacement")
    variables = {name: (dims, values, "nats", _words(name)) for name, values in made.items()}
    coords = {"site": named, "layer": layers, "replacement": list(request.methods)}
    return dataset(coords, variables, model=loaded.name, prompts=prompts.name, index=request.index)


def _words(name: str) -> str:
    stem = name.removesuffix("_low").removesuffix("_high")
    metric = next(one for one in METRICS if stem.startswith(one))
    more = {"_control": "the stronger of the two controls", "_excess": "beyond the stronger of the two controls"}
    return f"{METRICS[metric]}: {(dict(ARMS) | more)[stem.removeprefix(metric)]}"


def _summary(data: Any, prompts: int, self_change: float) -> dict[str, Any]:
    kl = data["kl"].values
    place = foremost(kl.ravel().tolist(), rounding(1.0, *kl.ravel().tolist())) or 0
    at = np.unravel_index(place, kl.shape)
    site, layer, method = (data[dim].values[one] for dim, one in zip(("site", "layer", "replacement"), at, strict=True))
    summary: dict[str, Any] = {"model": data.attrs["model"], "prompts": data.attrs["prompts"], "index": data.attrs["index"]}
    summary |= {"n_prompts": prompts, "n_cells": kl.size, "site": str(site), "layer": int(layer), "replacement": str(method)}
    names = [f"{metric}{arm}" for metric in METRICS for arm in (*ARMS, "_control", "_excess")]
    summary |= {f"{name}{end}": float(data[f"{name}{end}"].values[at]) for name in names for end in ("", "_low", "_high")}
    summary["self_patch_max_change"] = self_change
    return summary | {"finding": finding(summary)}


def against_control(cell: Any) -> Side:
    """On which side of the stronger control does the KL lie? What is summed up in a KL are log-probabilities, of nats."""
    kl, control, low, high = (float(cell[name]) for name in ("kl", "kl_control", "kl_excess_low", "kl_excess_high"))
    return side(kl, control, (low, high), rounding(1.0, kl, control))


def finding(summary: Mapping[str, Any]) -> str:
    """One plain sentence, of the cell whose ablation changes the predictions most."""
    verb = {"zero": "putting {} to zero", "mean": "putting {} to its mean", "resample": "giving {} another prompt's state"}
    what = verb[summary["replacement"]].format(f"{summary['site']} of layer {summary['layer']}")
    where = "at every token" if summary["index"] == "all" else "at the last predicting token"
    more = {"above": "more than", "below": "less than", "level": "no more than"}[against_control(summary)]
    return (
        f"{summary['model']} on {summary['prompts']}: of {summary['n_cells']} ablations {what} {where} changes the prediction most, by "
        f"{summary['kl']:.3f} nats [{summary['kl_low']:.3f}, {summary['kl_high']:.3f}] (loss {summary['loss']:+.3f}), {more} the stronger "
        f"random control ({summary['kl_control']:.3f})."
    )
