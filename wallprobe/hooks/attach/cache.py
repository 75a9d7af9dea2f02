"""Caching of named hooks: only what was asked for is kept, the forward pass stops where nothing more is needed, and the bytes
are predicted first. A hook that does not fire exactly once raises."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from wallprobe.errors import InstrumentError
from wallprobe.models import Loaded
from wallprobe.store.memory import GIB


class LargeCacheWarning(UserWarning):
    """A cache that will take more than 1 GiB; the message says how much."""


def predicted_bytes(loaded: Loaded, names: Sequence[str], batch: int, indices: int) -> int:
    """Bytes of an fp32 cache of hooks as wide as the residual stream.

    Args:
        loaded: the model.
        names: hook names.
        batch: sequences.
        indices: indices kept of each.
    """
    return 4 * len(names) * batch * indices * loaded.d_model


def layers_needed(names: Sequence[str]) -> int | None:
    """How many blocks must run for these hooks to fire; None if a name belongs to no block (then all)."""
    layers = [re.match(r"blocks\.(\d+)\.", name) for name in names]
    return None if any(match is None for match in layers) else max(int(match[1]) for match in layers if match) + 1


def capture(
    loaded: Loaded,
    tokens: Shaped[Tensor, "batch index *rest"],
    names: Sequence[str],
    *,
    keep: Sequence[int] | None = None,
    batch: int = 1024,
) -> dict[str, Float[Tensor, "batch kept width"]]:
    """Activations at named hooks.

    Args:
        loaded: the model.
        tokens: token ids, CPU or the model's device; of a network of the audit, its pictures.
        names: transformer-lens hook names; per-head values are flattened over heads.
        keep: indices to keep, all by default.
        batch: sequences a forward pass.

    Returns:
        For each name a CPU tensor [batch, kept index, width].

    Raises:
        InstrumentError: if a hook does not fire exactly once a forward pass.
    """
    kept = list(range(tokens.shape[1])) if keep is None else list(keep)
    expected = predicted_bytes(loaded, names, len(tokens), len(kept))
    if expected > GIB:
        warnings.warn(f"caching {len(names)} hooks will take {expected / GIB:.1f} GiB", LargeCacheWarning, stacklevel=2)
    pieces: dict[str, list[Tensor]] = {name: [] for name in names}
    for part in torch.split(tokens, batch):
        fired: dict[str, Tensor] = {}
        hooks = {name: recorder(fired, name, lambda value: value[:, kept].flatten(2)) for name in names}
        run(loaded, part, hooks, stop_at_layer=layers_needed(names))
        check_fired(loaded, names, fired)
        for name in names:
            pieces[name].append(fired[name])
    return {name: torch.cat(values) for name, values in pieces.items()}


def recorder(into: dict[str, Tensor], name: str, part: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    """A hook that keeps `part` of its value in `into[name]` and raises InstrumentError if it fires again.

    Kept by the name asked for: a bridge's hook carries its canonical name, not its alias.
    """

    def record(value: Tensor, hook: Any) -> None:
        if name in into:
            raise InstrumentError(f"hook {name} fired more than once in one forward pass")
        into[name] = part(value).detach().cpu()

    return record


def check_fired(loaded: Loaded, names: Sequence[str], fired: Mapping[str, Any]) -> None:
    """Raise InstrumentError if one of the names is missing from `fired`."""
    silent = [name for name in names if name not in fired]
    if silent:
        raise InstrumentError(f"hooks {', '.join(silent)} of {loaded.name} did not fire; the model has no such site")


def run(
    loaded: Loaded,
    tokens: Shaped[Tensor, "batch index *rest"],
    hooks: Mapping[str, Callable[..., Any]],
    *,
    stop_at_layer: int | None = None,
) -> Tensor:
    """One forward pass without gradients under hooks; logits, or the residual stream where it stopped."""
    device = next(loaded.model.parameters()).device
    model: Any = loaded.model
    stop = stop_at_layer if stop_at_layer is not None and stop_at_layer < loaded.n_layers else None
    with torch.no_grad():
        options = {} if stop is None else {"stop_at_layer": stop}
        output: Tensor = model.run_with_hooks(tokens.to(device), fwd_hooks=list(hooks.items()), **options)
    return output
