"""Places of an interchange: a site of a layer (or of a window of layers) at an index or a named slot, and those that can matter at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from wallprobe import models
from wallprobe.errors import ConfigError
from wallprobe.hooks.attach import sites

# Sites that write nothing later indices can read within the same block.
LATE_SITES = ("resid_mid", "resid_post", "attn_out", "mlp_out", "z")
TEXT_SITES = tuple(site for site in models.SITES if site != "resid_mid")  # modules of a transformers model give these
At = int | str


@dataclass(frozen=True)
class Place:
    """A cell.

    Attributes:
        site: of `models.SITES`, or `z.3`, a head's part of z.
        layer: the first that is patched.
        index: a token's, or a slot's name, which is another token's in every pair.
        window: layers patched at once.
    """

    site: str
    layer: int
    index: At
    window: int = 1

    @property
    def hook(self) -> str:
        """Its first hook's name."""
        return models.hook_name(self.layer, sites.module_site(self.site))

    @property
    def layers(self) -> range:
        """The layers that are patched."""
        return range(self.layer, self.layer + self.window)

    def moved(self, where: Mapping[At, int]) -> "Place":
        """The same at the index that its slot stands for."""
        return replace(self, index=where.get(self.index, self.index))

    def __str__(self) -> str:
        layers = f"layer {self.layer}" if self.window == 1 else f"layers {self.layer} to {self.layer + self.window - 1}"
        return f"{self.site} of {layers}, " + (f"slot {self.index}" if isinstance(self.index, str) else f"index {self.index}")


@runtime_checkable
class Blocks(Protocol):
    """What must be known of a model to lay out places.

    Attributes:
        n_layers: blocks.
        n_heads: heads of each.
        d_heads: width of their outputs side by side, 0 where it is not known.
        parallel: attention and MLP read the same residual.
    """

    n_layers: int
    n_heads: int
    d_heads: int
    parallel: bool


def chosen_layers(asked: Sequence[int] | None, depth: int, names: str, window: int = 1) -> tuple[int, ...]:
    """The layers asked for; all where none are.

    Raises:
        ConfigError: for one that is not there, or a window that does not fit.
    """
    last = depth - window
    if last < 0:
        raise ConfigError(f"--window {window} is more than the {depth} layers of {names}; give at most {depth}")
    layers = tuple(range(last + 1)) if asked is None else tuple(asked)
    wrong = [layer for layer in layers if not 0 <= layer <= last]
    if wrong:
        raise ConfigError(f"layer {wrong[0]} does not exist in {names}; give 0 to {last}, or all")
    return layers


def lay_out(
    layers: Sequence[int], at: Sequence[At], names: Sequence[str], depth: int, read: int, window: int = 1, *, late: Sequence[At] = ()
) -> list[Place]:
    """Every cell that can matter, in the order of indices, then layers: in the last layer a late site is read at the last index alone.

    Args:
        layers: of the patches.
        at: indices and slots.
        names: sites.
        depth: layers of the receiving model.
        read: the index that is read.
        window: layers patched at once.
        late: slots that are the read index in some pair.
    """
    return [
        Place(site, layer, index, window)
        for index in at
        for layer in layers
        for site in names
        if not (sites.module_site(site) in LATE_SITES and layer == depth - 1 and index != read and index not in late)
    ]
