"""Attention patterns of any forward pass, or what they come to: entropy, share on the first token, distance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach.any_model import of_wrapped
from wallprobe.hooks.attach.modules.attached import Following
from wallprobe.models import Model
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

STATISTICS = {
    "entropy": ("entropy of the attention of a query, mean over queries behind the first", "nats"),
    "first_share": ("share of the attention that goes to the first token, mean over queries behind the first", "fraction"),
    "distance": ("indices between a query and what it attends to, mean over queries behind the first", "index"),
}
KEEPS = ("statistics", "patterns")


class AttentionWatch(Following):
    """Follows attention patterns while it is attached.

    Args:
        model: as `models.as_model`; it must show `blocks.L.attn.hook_pattern`.
        layers: which; None for all.
        keep: "statistics" sums by layer and head, in fp64 and constant memory; "patterns" keeps every pattern as well.

    Raises:
        ConfigError: for another `keep`, or a layer that is not there.
    """

    def __init__(self, model: Model, layers: int | Sequence[int] | None = None, *, keep: str = "statistics") -> None:
        if keep not in KEEPS:
            raise ConfigError(f"keep '{keep}' is none of {', '.join(KEEPS)}")
        super().__init__(model, ())
        depth = self.loaded.n_layers
        wanted = range(depth) if layers is None else [layers] if isinstance(layers, int) else layers
        wrong = [layer for layer in wanted if not -depth <= layer < depth]
        if wrong or not list(wanted):
            raise ConfigError(f"layer {wrong[0] if wrong else 'none'} is not in {self.loaded.name}, which has {depth}: 0 to {depth - 1}")
        self.layers = tuple(layer % depth for layer in wanted)
        self.names = tuple(f"blocks.{layer}.attn.hook_pattern" for layer in self.layers)
        self.keep, self._watch = keep, Stopwatch()
        self._sums: dict[str, Tensor] = {}
        self._patterns: list[dict[int, Tensor]] = []
        self.sequences = self.queries = 0

    def _part(self, name: str, value: Tensor) -> Tensor:
        if value.ndim != 4:
            raise InstrumentError(f"{name} carries {tuple(value.shape)}, wanted batch x head x query x key")
        return value.cpu()

    def _take(self, fired: dict[str, Tensor]) -> None:
        found = [figures(fired[name]) for name in self.names]
        if len({len(one["entropy"]) for one in found}) > 1:
            raise InstrumentError(f"layers of {self.loaded.name} have different numbers of heads; watch those of one number together")
        sums = {name: torch.stack([one[name] for one in found]) for name in STATISTICS}
        self._sums = {name: value + self._sums[name] if self._sums else value for name, value in sums.items()}
        first = fired[self.names[0]]
        self.sequences += len(first)
        self.queries += len(first) * (first.shape[-2] - 1)
        if self.keep == "patterns":
            self._patterns.append({layer: fired[name] for layer, name in zip(self.layers, self.names, strict=True)})

    @property
    def patterns(self) -> list[dict[int, Float[Tensor, "batch head query key"]]]:
        """Every pass's patterns by layer.

        Raises:
            ConfigError: unless they were to be kept.
        """
        if self.keep != "patterns":
            raise ConfigError("the patterns were not kept; make the watch with keep='patterns'")
        return list(self._patterns)

    def result(self) -> Result:
        """What was seen so far: kind "attention_watch", table by layer and head.

        Raises:
            InstrumentError: if nothing was seen, or sequences of one token alone.
        """
        if not self.queries:
            raise InstrumentError(f"no query behind a first token was seen; call {self.loaded.name} on two tokens or more while it is on")
        means = {name: (value / self.queries).numpy() for name, value in self._sums.items()}
        heads = list(range(means["entropy"].shape[1]))
        variables = {name: (("layer", "head"), means[name], units, words) for name, (words, units) in STATISTICS.items()}
        data = dataset({"layer": list(self.layers), "head": heads}, variables, model=self.loaded.name)
        strongest = np.unravel_index(int(means["first_share"].argmax()), means["first_share"].shape)
        share, layer = float(means["first_share"].max()), self.layers[int(strongest[0])]
        summary: dict[str, Any] = {"model": self.loaded.name, "n_sequences": self.sequences, "n_queries": self.queries}
        summary |= {name: float(value.mean()) for name, value in means.items()}
        summary["finding"] = (
            f"Attention's entropy is {summary['entropy']:.3g} nats on average; head {int(strongest[1])} of layer {layer} gives {share:.0%} "
            "of its attention to the first token, more than any other."
        )
        manifest = provenance(
            config={"model": self.loaded.name, "layers": list(self.layers)},
            device=str(next(self.loaded.model.parameters()).device),
            dtype="float32, sums in float64",
            watch=self._watch,
            subject=self.loaded.name,
            weight_hash=self.loaded.current_hash,
        )
        return of_wrapped(Result("attention_watch", data, ("layer", "head"), summary, manifest), self.loaded)


def figures(pattern: Float[Tensor, "batch head query key"]) -> dict[str, Float[Tensor, " head"]]:
    """Sums over sequences and queries behind the first, fp64."""
    p = pattern.double()[:, :, 1:]
    query = torch.arange(1, pattern.shape[-2], dtype=torch.float64)[:, None]
    apart = query - torch.arange(pattern.shape[-1], dtype=torch.float64)
    return {
        "entropy": -torch.special.xlogy(p, p).sum(dim=(0, 2, 3)),
        "first_share": p[..., 0].sum(dim=(0, 2)),
        "distance": (p * apart).sum(dim=(0, 2, 3)),
    }
