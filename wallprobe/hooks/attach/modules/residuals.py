"""Activations at named hooks, of one pass or many: in memory, or beyond a budget on disk; and `capture`, which feeds a model for them."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Shaped
from torch import Tensor

from wallprobe.errors import ConfigError, InstrumentError, StoreError, UnknownNameError
from wallprobe.hooks.attach.any_model import class_name
from wallprobe.hooks.attach.cache import LargeCacheWarning, predicted_bytes
from wallprobe.hooks.attach.modules.attached import Following, feed, names_of
from wallprobe.hooks.attach.prompt_sets import Prompts, as_prompts, batches
from wallprobe.models import Model, as_model, resting
from wallprobe.store.manifest import versions
from wallprobe.store.memory import GIB
from wallprobe.store.storage import as_json, atomic_directory, read_json, sha256_file, write_within

MANIFEST = "manifest.json"
KIND = "residual cache"
Index = int | Sequence[int] | None


class ResidualCache(Following):
    """Keeps what was named of every forward pass, and nothing else.

    >>> with ResidualCache(model, "blocks.*.hook_resid_post", index=-1) as cache:  # doctest: +SKIP
    ...     model(tokens)
    >>> cache["blocks.3.hook_resid_post"]  # [sequence, 1, d_model]  # doctest: +SKIP

    Args:
        model: as `models.as_model`.
        names: hook names or patterns (see `attached.names_of`).
        index: which indices of each sequence; None for all.
        budget: bytes in memory above which passes go to disk; needs a folder.
        folder: where safetensors shards and their manifest are put, all at once when the block ends well; a kill leaves nothing there.

    Raises:
        ConfigError: for a budget without a folder, or one that is negative.
        UnknownNameError: as `names_of`.
    """

    def __init__(
        self, model: Model, names: str | Sequence[str], index: Index = None, *, budget: int | None = None, folder: str | Path | None = None
    ) -> None:
        if budget is not None and (budget < 0 or folder is None):
            raise ConfigError(f"a budget of {budget} bytes needs a folder for what is above it; give folder=...")
        super().__init__(model, ())
        self.names = tuple(names_of(self.loaded, names))
        self.index, self.budget = index, budget
        self.folder = None if folder is None else Path(folder)
        self._clear()

    def _clear(self) -> None:
        self._held: list[dict[str, Tensor]] = []
        self._shards: list[dict[str, Any]] = []
        self._where: Path | None = None
        self.bytes_held = 0

    def predicted_bytes(self, sequences: int, length: int) -> int:
        """Bytes that so many sequences of that length will take, at hooks as wide as the residual stream."""
        return predicted_bytes(self.loaded, self.names, sequences, length if self.index is None else len(_places(self.index)))

    def _attach(self, stack: ExitStack) -> None:
        self._clear()
        if self.folder is not None:
            self._where = stack.enter_context(atomic_directory(self.folder))
        super()._attach(stack)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """As `Attached`; with a folder, what was kept is there afterwards, or nothing is."""
        try:
            super().__exit__(kind, error, trace)
        except BaseException:
            self._clear()
            raise
        if kind is not None and self.folder is not None:
            self._clear()
        self._where = self.folder

    def _part(self, name: str, value: Tensor) -> Tensor:
        if value.ndim < 3:
            raise InstrumentError(f"hook {name} carries {tuple(value.shape)}, wanted batch x index x width")
        kept = value if self.index is None else value[:, _checked(self.index, value.shape[1])]
        return kept.flatten(2).to("cpu", copy=True)

    def _take(self, fired: dict[str, Tensor]) -> None:
        self._held.append(fired)
        self.bytes_held += sum(value.nbytes for value in fired.values())
        if self.budget is not None and self.bytes_held > self.budget:
            self._spill()

    def _spill(self) -> None:
        """What is held becomes a shard."""
        from safetensors.torch import save

        assert self._where is not None
        if not self._held:
            return
        first = sum(shard["passes"] for shard in self._shards)
        tensors = {f"{first + place}/{name}": value.contiguous() for place, one in enumerate(self._held) for name, value in one.items()}
        path = self._where / f"shard-{len(self._shards):05d}.safetensors"
        write_within(path, save(tensors))
        self._shards.append({"file": path.name, "passes": len(self._held), "bytes": self.bytes_held, "sha256": sha256_file(path)})
        self._held, self.bytes_held = [], 0

    def _finish(self) -> None:
        if self._where is None:
            return
        self._spill()
        loaded, index = self.loaded, self.index
        told: dict[str, Any] = {"kind": KIND, "model": loaded.name, "class": class_name(loaded), "weight_hash": loaded.current_hash}
        told |= {"names": list(self.names), "index": index if index is None or isinstance(index, int) else list(index)}
        write_within(self._where / MANIFEST, as_json(told | {"shards": self._shards, "versions": versions()}))

    def passes(self, name: str) -> list[Shaped[Tensor, "batch index width"]]:
        """What was kept at a hook, one tensor a forward pass.

        Raises:
            UnknownNameError: for a hook that was not named.
            StoreError: if a shard is missing or altered.
        """
        if name not in self.names:
            raise UnknownNameError(f"this cache holds no '{name}'; it holds: {', '.join(self.names[:6])}")
        stored = [] if self._where is None else list(_stored(self._where, self._shards, name))
        return stored + [one[name] for one in self._held]

    def __getitem__(self, name: str) -> Shaped[Tensor, "sequence index width"]:
        """What was kept at a hook, sequences of all passes in order.

        Raises:
            InstrumentError: if no pass was made, or lengths differ; `passes` has them apart.
            UnknownNameError, StoreError: as `passes`.
        """
        found = self.passes(name)
        if not found or len({value.shape[1:] for value in found}) > 1:
            raise InstrumentError(
                f"{len(found)} passes of {'different lengths' if found else 'the model'} at {name}; passes(name) has each"
            )
        return torch.cat(found)


def _places(index: int | Sequence[int]) -> list[int]:
    return [index] if isinstance(index, int) else list(index)


def _checked(index: int | Sequence[int], length: int) -> list[int]:
    wrong = [place for place in _places(index) if not -length <= place < length]
    if wrong:
        raise ConfigError(f"index {wrong[0]} is outside sequences of {length} tokens")
    return _places(index)


def _stored(folder: Path, shards: Sequence[dict[str, Any]], name: str | None = None) -> Iterator[Any]:
    """Each pass of one hook, or `(name, value)` of all."""
    from safetensors import SafetensorError, safe_open

    for shard in shards:
        path = folder / str(shard["file"])
        try:
            if sha256_file(path) != shard["sha256"]:
                raise StoreError(f"{path} is not what its manifest says: it was altered; capture it again")
            with safe_open(path, framework="pt") as handle:
                keys = sorted(handle.keys(), key=lambda key: int(key.partition("/")[0]))
                for key in keys:
                    if name is None:
                        yield key.partition("/")[2], handle.get_tensor(key)
                    elif key.partition("/")[2] == name:
                        yield handle.get_tensor(key)
        except (OSError, ValueError, SafetensorError) as error:
            raise StoreError(f"{path} cannot be read ({error}); capture it again") from error


def read_cache(folder: str | Path) -> dict[str, list[Shaped[Tensor, "batch index width"]]]:
    """What a ResidualCache left in a folder: for each hook one tensor a forward pass.

    Raises:
        StoreError: if it is none, or a shard is missing or altered.
    """
    told = read_json(Path(folder) / MANIFEST)
    if not isinstance(told, dict) or told.get("kind") != KIND:
        raise StoreError(f"{folder} holds no residual cache; give a folder that ResidualCache wrote")
    found: dict[str, list[Tensor]] = {str(name): [] for name in told["names"]}
    for name, value in _stored(Path(folder), told["shards"]):
        found[name].append(value)
    return found


def capture(model: Model, prompts: Prompts, names: str | Sequence[str], index: Index = None) -> xr.DataArray:
    """Activations at named hooks, labelled.

    Args:
        model: as `models.as_model`.
        prompts: texts or token ids, as `prompt_sets.as_prompts`.
        names: hook names or patterns, such as "blocks.*.hook_resid_post".
        index: one index of each prompt, several, or None for all; shorter prompts are then filled with NaN at the right.

    Returns:
        fp32, dims hook, prompt, index and d_model ("width" where the hooks are of another width); per-head values are flattened over heads.

    Raises:
        UnknownNameError: if a pattern names no hook.
        ConfigError: for an index outside a prompt, or hooks of different widths.
        InstrumentError: if a hook does not fire exactly once a forward pass.
    """
    loaded = as_model(model)
    chosen = as_prompts(loaded, prompts)
    cache = ResidualCache(loaded, names, index)
    longest = max(len(row) for row in chosen.tokens)
    expected = cache.predicted_bytes(len(chosen.tokens), longest)
    if expected > GIB:
        warnings.warn(f"caching {len(cache.names)} hooks will take {expected / GIB:.1f} GiB", LargeCacheWarning, stacklevel=2)
    members = list(batches(chosen))
    with resting(loaded), cache:
        for rows in members:
            feed(loaded, torch.stack([chosen.tokens[row] for row in rows]), cache.names)
    places = list(range(longest)) if index is None else _places(index)
    first = cache.passes(cache.names[0])[0]
    shape = (len(cache.names), len(chosen.tokens), len(places), first.shape[-1])
    data = np.full(shape, np.nan, dtype=np.float32)
    for place, name in enumerate(cache.names):
        for rows, value in zip(members, cache.passes(name), strict=True):
            if value.shape[-1] != shape[-1]:
                raise ConfigError(f"{name} is {value.shape[-1]} wide and {cache.names[0]} {shape[-1]}; capture hooks of one width together")
            data[place, rows, : value.shape[1]] = value.float().numpy()
    last = "d_model" if shape[-1] == loaded.d_model else "width"
    coords = {"hook": list(cache.names), "prompt": list(chosen.texts), "index": places}
    attrs = {
        "long_name": "activation",
        "units": "1",
        "model": loaded.name,
        "weight_hash": loaded.current_hash or "",
        "prompts": chosen.name,
    }
    return xr.DataArray(data, dims=("hook", "prompt", "index", last), coords=coords, attrs=attrs, name="activation")
