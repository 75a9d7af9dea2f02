"""Texts of different lengths through a model without padding: those of one length together, and states at chosen tokens alone."""

import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import models
from wallprobe.errors import ConfigError
from wallprobe.hooks.attach import cache
from wallprobe.store.memory import GIB

EMBEDDING = -1  # the "layer" of what enters the first block
TOKENS = 4096  # tokens a forward pass
Follow = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Tell nobody how far it is."""


def by_length(rows: Sequence[Int[Tensor, "_"]], tokens: int = TOKENS) -> Iterator[tuple[list[int], Int[Tensor, "batch index"]]]:
    """Batches of equal lengths, each with which of the rows they are.

    Args:
        rows: token ids.
        tokens: of a batch at most, one row at least.
    """
    lengths: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        lengths.setdefault(len(row), []).append(number)
    for length, members in sorted(lengths.items()):
        size = max(1, tokens // max(length, 1))
        for first in range(0, len(members), size):
            some = members[first : first + size]
            yield some, torch.stack([rows[number] for number in some])


def hooks_of(loaded: models.Loaded, site: str, layers: Sequence[int] | None = None) -> dict[int, str]:
    """Layer -> hook of a site; of `resid_post` at all layers, `EMBEDDING` too: what enters the first block.

    Args:
        loaded: the model.
        site: one of `models.SITES`.
        layers: None for all.

    Raises:
        UnknownNameError: for a site there is not.
        ConfigError: for a layer there is not.
    """
    models.hook_name(0, site)
    wrong = [layer for layer in layers or () if not 0 <= layer < loaded.n_layers]
    if wrong:
        raise ConfigError(f"layer {wrong[0]} does not exist in {loaded.name}; give 0 to {loaded.n_layers - 1}, or 'all'")
    found = {EMBEDDING: models.hook_name(0, "resid_pre")} if layers is None and site == "resid_post" else {}
    return found | {layer: models.hook_name(layer, site) for layer in (range(loaded.n_layers) if layers is None else layers)}


def layer_name(layer: int) -> str:
    """A layer as tables show it."""
    return "embed" if layer == EMBEDDING else str(layer)


def states_at(
    loaded: models.Loaded,
    rows: Sequence[Int[Tensor, "_"]],
    row: Int[Tensor, " place"],
    index: Int[Tensor, " place"],
    names: Sequence[str],
    follow: Follow = silent,
) -> Float[Tensor, "hook place width"]:
    """What stands at hooks, at chosen tokens of texts.

    Args:
        loaded: the model.
        rows: token ids of each text.
        row: text of each place.
        index: token of each place.
        names: hooks.
        follow: told (texts done, of all).

    Returns:
        CPU fp32; values a head are flattened over heads.

    Raises:
        InstrumentError: if a hook does not fire exactly once a pass.
    """
    expected = cache.predicted_bytes(loaded, names, len(row), 1)
    if expected > GIB:
        warnings.warn(f"caching {len(names)} hooks will take {expected / GIB:.1f} GiB", cache.LargeCacheWarning, stacklevel=2)
    found: list[Tensor | None] = [None] * len(row)
    wanted: dict[int, list[int]] = {}
    for place, text in enumerate(row.tolist()):
        wanted.setdefault(text, []).append(place)
    done = 0
    for some, tokens in by_length(rows):
        at = [(number, place) for number, text in enumerate(some) for place in wanted.get(text, [])]
        if at:
            batch, tokens_at = torch.tensor([number for number, _ in at]), index[[place for _, place in at]]
            fired: dict[str, Tensor] = {}

            def chosen(value: Tensor, batch: Tensor = batch, tokens_at: Tensor = tokens_at) -> Tensor:
                return value[batch.to(value.device), tokens_at.to(value.device)].flatten(1).float()

            cache.run(
                loaded, tokens, {name: cache.recorder(fired, name, chosen) for name in names}, stop_at_layer=cache.layers_needed(names)
            )
            cache.check_fired(loaded, names, fired)
            stacked = torch.stack([fired[name] for name in names])
            for number, (_, place) in enumerate(at):
                found[place] = stacked[:, number]
        done += len(some)
        follow(done, len(rows))
    return torch.stack([one for one in found if one is not None], dim=1)
