"""Gains of models larger than memory: one block in memory at a time, every prompt through it, nothing kept but hidden states and norms.

Each weight is read once for any number of prompts; what was done is kept, so that an interrupted measurement goes on at its block.
"""

import functools
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wallprobe.errors import CheckpointError, ConfigError, InstrumentError
from wallprobe.hooks.attach.prompt_sets import MAX_TOKENS, PromptSet, batches
from wallprobe.hooks.gains.definitions import Norms, Terms
from wallprobe.hooks.gains.norms import WAITING, block_norms, check_finite, check_identity
from wallprobe.hooks.gains.report import Settings, Subject, report
from wallprobe.models.ahead import Ahead, buffer_bytes, can_pass_cache
from wallprobe.models.streamed import Streamed
from wallprobe.models.strips import STRIP, Crew
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.memory import GIB, available_bytes
from wallprobe.store.results import Result
from wallprobe.store.storage import discard, ensure_directory, write_atomic

BASE = 600 << 20  # what Python, torch and transformers take themselves
STATE, KEY, SEEN = "stream.safetensors", "key", "seen."
EVERY = 5.0  # seconds between two savings of what was done


@runtime_checkable
class Visitor(Protocol):
    """Looks at every block's output.

    Attributes:
        held: bytes that it will hold at most.
    """

    held: int

    def visit(self, layer: int, after: Sequence[Float[Tensor, "_ _ d_model"]], crew: Crew) -> None:
        """Once a block, every batch's output in the order of `measure.batches`."""

    def kept(self) -> dict[str, Tensor]:
        """What it has gathered, to go on from after an interruption."""

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Take that up again."""


class _Watch(threading.Thread):
    """Peak anonymous memory of this process while it runs, in bytes; None where the system does not tell."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak: int | None = anonymous_bytes()
        self._over = threading.Event()

    def run(self) -> None:
        while self.peak is not None and not self._over.wait(0.02):
            self.peak = max(self.peak, anonymous_bytes() or 0)

    def stop(self) -> float | None:
        """End; the peak in GiB."""
        self._over.set()
        self.join()
        return None if self.peak is None else round(self.peak / GIB, 3)


def anonymous_bytes() -> int | None:
    """Anonymous memory of this process now; pages of files do not count, the system can drop them."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon")), None)


def parse_size(text: str) -> int:
    """Bytes of a size as typed: 8GiB, 500M, 1.5G.

    Raises:
        ConfigError: if it is none.
    """
    units = {"": GIB, "K": 1 << 10, "M": 1 << 20, "G": GIB, "T": 1 << 40}
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    if match is None or not float(match[1]):
        raise ConfigError(f"--max-ram '{text}' is no size; give for instance 8GiB, 500M or 1.5G")
    return int(float(match[1]) * units[match[2]])


def default_budget() -> int:
    """Four fifths of the memory that is free now."""
    return available_bytes() * 4 // 5


def estimate_bytes(model: Streamed, prompts: PromptSet, more: int = 0, *, past_cache: bool = False) -> int:
    """Peak anonymous memory of streaming: what a block keeps in fp32, hidden states before and after it, one wave's activations, strips.

    Args:
        model: the checkpoint.
        prompts: what it reads.
        more: what a visitor holds.
        past_cache: count the two buffers that blocks are read into, see `passes_cache`.
    """
    tokens = sum(len(row) for row in prompts.tokens)
    longest = max(len(row) for row in prompts.tokens)
    width = max(max(shape) for name, shape in model.shards.shapes.items() if f".{model.stack}." in f".{name}")
    wave = min(max(MAX_TOKENS, longest), tokens)
    activations = 4 * wave * (4 * width + 16 * model.d_model) + 16 * WAITING
    blocks = [list(model.names(layer).values()) for layer in range(model.n_layers)] if past_cache else []
    buffers = 2 * buffer_bytes(model.shards, blocks) if past_cache else 0
    strips = 4 * STRIP * torch.get_num_threads()
    return BASE + max(model.kept_bytes) + 2 * 4 * tokens * model.d_model + activations + strips + buffers + more


def passes_cache(model: Streamed, prompts: PromptSet, max_ram: int | None, more: int = 0) -> bool:
    """Whether blocks are read past the system's cache: where it cannot hold half of the checkpoint beside all else, and two buffers fit."""
    free, read = available_bytes(), sum(model.shards.sizes.values())
    if read < free // 2 or not can_pass_cache(model.shards):
        return False
    return max_ram is None or estimate_bytes(model, prompts, more, past_cache=True) <= max_ram


def check_definition(settings: Settings) -> Callable[[Norms, int], Terms]:
    """What makes gains of norms.

    Raises:
        ConfigError: if the definition needs more than norms.
    """
    if settings.definition.terms is None:
        raise ConfigError(f"--gain {settings.definition.name} needs the whole model in memory; leave --stream out or give another --gain")
    return settings.definition.terms


def check_budget(model: Streamed, prompts: PromptSet, max_ram: int | None, more: int = 0) -> int:
    """The estimate, with the buffers that will be used.

    Raises:
        ConfigError: if it is above the budget.
    """
    needed = estimate_bytes(model, prompts, more)
    if max_ram is not None and needed > max_ram:
        raise ConfigError(
            f"streaming {model.name} takes about {needed / GIB:.2f} GiB, {BASE / GIB:.2f} of it for Python and torch themselves; "
            f"--max-ram allows {max_ram / GIB:.2f}; raise it, or read fewer prompts with --limit"
        )
    return estimate_bytes(model, prompts, more, past_cache=passes_cache(model, prompts, max_ram, more))


def stream_gains(
    model: Streamed,
    prompts: PromptSet,
    settings: Settings,
    *,
    state: Path | None = None,
    max_ram: int | None = None,
    every: float = EVERY,
    device: str = "cpu",
    visitor: Visitor | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """What `gains` gives, block by block.

    Args:
        model: an opened checkpoint.
        prompts: what it reads.
        settings: how gains are made of norms.
        state: folder where what was done is kept until the end; None keeps nothing.
        max_ram: budget in bytes, refused beforehand where the estimate is above it.
        every: seconds between two savings.
        device: what multiplies; files are read, and norms taken, on the CPU.
        visitor: looks at every block's output besides.
        on_progress: told (blocks done, blocks in all).

    Raises:
        ConfigError: if the budget is too small, or the definition needs more than norms.
        CheckpointError: if a tensor is missing or of another shape.
        InstrumentError: if the parts of a block do not add up, or a norm is not finite.
    """
    terms_of = check_definition(settings)
    more = 0 if visitor is None else visitor.held
    check_budget(model, prompts, max_ram, more)
    past_cache = passes_cache(model, prompts, max_ram, more)
    watch, memory = Stopwatch(), _Watch()
    memory.start()
    try:
        with torch.inference_mode():
            norms = _walk(model, prompts, state, every, on_progress, past_cache=past_cache, device=device, visitor=visitor)
    finally:
        peak = memory.stop()
    subject = subject_of(model, device, peak)
    terms = [terms_of(one, model.d_model) for one in norms]
    return report(subject, prompts, settings, norms, terms, watch)


def subject_of(model: Streamed, device: str, peak: float | None) -> Subject:
    """The model as a report names it."""
    shape = (model.name, model.kind, model.n_layers, model.d_model, model.weight_hash, model.parallel)
    return Subject(*shape, model.n_params, model.n_params_non_embedding, device=device, streamed=True, peak_gib=peak)


def _walk(
    model: Streamed,
    prompts: PromptSet,
    state: Path | None,
    every: float,
    on_progress: Callable[[int, int], None] | None,
    *,
    past_cache: bool,
    device: str,
    visitor: Visitor | None = None,
) -> list[Norms]:
    """Every block in turn; every batch through each."""
    groups = list(batches(prompts))
    waves = _waves(groups, prompts)
    started = [model.start(torch.stack([prompts.tokens[index] for index in members])) for members in groups]
    hidden, named = [first for first, _ in started], [calls for _, calls in started]
    key = _key(model, prompts, visitor)
    done, hidden, rows = _resume(state, key, hidden, visitor)
    hidden, named = _placed(hidden, device), _placed(named, device)
    saved = Stopwatch()
    blocks = [list(model.names(layer).values()) for layer in range(done, model.n_layers)]
    with Crew(device=device) as crew, Ahead(model.shards, blocks, past_cache=past_cache) as ahead:
        for layer in range(done, model.n_layers):
            block = _Block(model, layer, ahead.take(), crew)
            for wave in waves:
                passes = [functools.partial(block.through, hidden[place], named[place][layer]) for place in wave]
                for place, (after, row) in zip(wave, crew.side_by_side(passes), strict=True):
                    hidden[place] = after
                    rows[place].append(row)
            if visitor is not None:
                visitor.visit(layer, hidden, crew)
            if state is not None and (saved.seconds() >= every or layer + 1 == model.n_layers):
                _save(state, key, layer + 1, hidden, rows, visitor)
                saved = Stopwatch()
            if on_progress is not None:
                on_progress(layer + 1, model.n_layers)
    found: dict[int, Norms] = {}
    for members, batch in zip(groups, rows, strict=True):
        stacked = {name: torch.stack([row[name] for row in batch], dim=1) for name in batch[0]}
        check_identity(model.name, stacked["identity_error"])
        for row_number, index in enumerate(members):
            found[index] = Norms(**{field.name: stacked[field.name][row_number] for field in fields(Norms)})
    if state is not None:
        discard(state)
    return [found[index] for index in range(len(prompts.tokens))]


class _Block:
    """A block under two hooks: batches go through it side by side, each keeping what its own pass gives."""

    def __init__(self, model: Streamed, layer: int, tensors: Mapping[str, Tensor], crew: Crew) -> None:
        self._model, self._layer, self._own = model, layer, threading.local()
        self._module, attention, mlp = model.block(layer, tensors, crew)
        for part, branch in ((attention, "attn"), (mlp, "mlp")):
            part.register_forward_hook(self._watch(branch), with_kwargs=True)

    def _watch(self, branch: str) -> Callable[..., None]:
        def hook(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            live: dict[str, Tensor] = self._own.live
            if f"{branch}_out" in live:
                raise InstrumentError(f"{self._model.name}: {branch} of layer {self._layer} was called twice; no gain reported")
            live[f"{branch}_in"] = positional[0] if positional else named["hidden_states"]
            live[f"{branch}_out"] = output[0] if isinstance(output, tuple) else output

        return hook

    def through(self, hidden: Tensor, call: tuple[Any, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """One batch's output and its norms.

        Raises:
            InstrumentError: if attention or MLP was not called exactly once, or an output is not finite.
        """
        live = self._own.live = {"resid_pre": hidden}
        output = self._module(hidden, *call[0], **call[1])
        after = output[0] if isinstance(output, tuple) else output
        missing = sorted({"attn_in", "attn_out", "mlp_in", "mlp_out"} - live.keys())
        if missing:
            raise InstrumentError(f"{self._model.name}: {', '.join(missing)} of layer {self._layer} did not fire; no gain reported")
        row = block_norms([live | {"resid_post": after}], self._model.parallel)[0]
        self._own.live = {}
        check_finite(self._model.name, row["resid_post"], self._layer)
        return after, row


def _waves(groups: Sequence[Sequence[int]], prompts: PromptSet) -> list[list[int]]:
    """Places of the batches that go through a block together: at most `MAX_TOKENS` tokens, or one batch."""
    waves: list[list[int]] = []
    room = 0
    for place, members in enumerate(groups):
        tokens = sum(len(prompts.tokens[index]) for index in members)
        if not waves or tokens > room:
            waves.append([])
            room = MAX_TOKENS
        waves[-1].append(place)
        room -= tokens
    return waves


def _key(model: Streamed, prompts: PromptSet, visitor: Visitor | None) -> str:
    """What a saved state must be of: these files and these prompts, and who looked on."""
    stats = {name: (model.shards.folder / name).stat() for name in sorted(set(model.shards.files.values()))}
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()]
    return hashlib.sha256(json.dumps([prompts.data_hash, files, model.n_layers, type(visitor).__name__]).encode()).hexdigest()


def _placed(value: Any, device: str) -> Any:
    """Whatever tensors are in it, on a device; blocks are called with masks and rotations in tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _placed(part, device) for key, part in value.items()}
    return type(value)(_placed(part, device) for part in value) if isinstance(value, list | tuple) else value


def _save(state: Path, key: str, done: int, hidden: list[Tensor], rows: list[list[dict[str, Tensor]]], visitor: Visitor | None) -> None:
    """Hidden states and norms so far, whole or not at all."""
    from safetensors.torch import save

    ensure_directory(state)
    tensors = {f"hidden.{place}": one.cpu().contiguous() for place, one in enumerate(hidden)}
    for place, batch in enumerate(rows):
        tensors |= {f"norms.{place}.{name}": torch.stack([row[name] for row in batch]) for name in batch[0]}
    if visitor is not None:
        tensors |= {f"{SEEN}{name}": tensor for name, tensor in visitor.kept().items()}
    write_atomic(state / STATE, save(tensors, {KEY: key, "done": str(done)}), state.parent)


def _resume(
    state: Path | None, key: str, hidden: list[Tensor], visitor: Visitor | None
) -> tuple[int, list[Tensor], list[list[dict[str, Tensor]]]]:
    """Blocks done, hidden states and norms; from the start where nothing of these files and prompts is kept."""
    fresh: list[list[dict[str, Tensor]]] = [[] for _ in hidden]
    if state is None or not (state / STATE).is_file():
        return 0, hidden, fresh
    from safetensors import safe_open

    try:
        with safe_open(state / STATE, "pt") as handle:
            told: dict[str, str] = handle.metadata() or {}
            if told.get(KEY) != key:
                return 0, hidden, fresh
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118
    except Exception as error:
        raise CheckpointError(f"what was kept in {state / STATE} is damaged ({error}); remove it") from error
    done = int(told["done"])
    for name, tensor in tensors.items():
        if name.startswith("norms."):
            _, place, which = name.split(".")
            batch = fresh[int(place)]
            batch.extend({} for _ in range(done - len(batch)))
            for layer in range(done):
                batch[layer][which] = tensor[layer]
    if visitor is not None:
        visitor.restore({name.removeprefix(SEEN): tensor for name, tensor in tensors.items() if name.startswith(SEEN)})
    return done, [tensors[f"hidden.{place}"] for place in range(len(hidden))], fresh
