"""The two models of an interchange: what each is, before its weights are in memory, and its engine once they are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from wallprobe import models
from wallprobe.errors import ConfigError
from wallprobe.hooks.attach import stacks
from wallprobe.hooks.interchange.engines import Looped, ModuleHooks, PointHooks, Resumed, Traces, Whole, layout
from wallprobe.hooks.interchange.pairs import PROGRAMS, Pairs
from wallprobe.hooks.interchange.places import Blocks
from wallprobe.hooks.interchange.request import Request
from wallprobe.models.wrapping import of_transformers
from wallprobe.store import runs
from wallprobe.store.runs import Run
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall import lean

RUN_WORD = 24  # bytes of a run's logit: itself in fp32 and fp64, and its log-probability


@dataclass
class Side:
    """A model of an interchange.

    Attributes:
        name: for tables.
        blocks: its sizes.
        limits: what it can be given.
        d_model: width of the residual stream.
        steps: is it known how its passes go from the middle?
        run: the run it is.
        tokenizer: of a language model.
        vocabulary: of the tokenizer, to tell two models' apart.
    """

    name: str
    blocks: Blocks
    limits: models.Limits
    d_model: int
    steps: bool
    run: Run | None = None
    tokenizer: Any = None
    held: models.Plain | models.Loaded | None = None
    load: Callable[[], models.Plain] | None = field(default=None, repr=False)

    @property
    def weight_hash(self) -> str | None:
        """SHA-256 of the weights, as far as they were read."""
        if self.run is not None:
            return str(self.run.manifest["weight_hash"])
        return self._hash if self.held is None else self.held.weight_hash

    _hash: str | None = field(default=None, repr=False)

    def loaded(self, device: str) -> models.Loaded:
        """The model of a run, with its hooks."""
        assert self.run is not None
        return models.load_run(self.run, device)

    def engine(self, quick: bool, request: Request, device: str) -> Looped:
        """Its engine; the weights are read here where they were not at hand."""
        if self.run is not None:
            return self._of_run(self.run, quick, request, device)
        if isinstance(self.held, models.Loaded):
            whole: Whole = PointHooks(self.name, lambda: self.held, self.blocks)  # type: ignore[arg-type, return-value]
            return Looped(whole)
        if self.held is None:
            assert self.load is not None
            self.held = self.load()
        stack = layout(self.held)
        if request.backend == "nnsight":
            return Looped(Traces(self.name, self.held.model, stack, self.held.tokenizer, request.remote))
        hooks = ModuleHooks(self.held, stack)
        return Resumed(hooks, stack) if quick and isinstance(stack, stacks.Native) else Looped(hooks)

    def _of_run(self, run: Run, quick: bool, request: Request, device: str) -> Looped:
        if request.backend == "nnsight":
            return Looped(Traces(self.name, models.load_run(run, device).model, self.blocks, points=True))
        whole = PointHooks(self.name, lambda: models.load_run(run, device), self.blocks)
        if not quick:
            return Looped(whole)
        state = {name: tensor.to(device) for name, tensor in run.tensors().items()}
        stack = stacks.of_run(state, lean.Shape(**run.manifest["shape"]))
        if stack is None:
            raise ConfigError(f"{run.name} has a learned temperature or forget gates, which a sweep cannot resume; use --layer and --index")
        return Resumed(whole, stack, RUN_WORD, verify=False)

    def close(self) -> None:
        """Let go of weights that were read for this."""
        if self.load is not None and isinstance(self.held, models.Plain):
            self._hash, self.held = self.held.weight_hash, None


def pair(request: Request, root: Path | None, device: str) -> tuple[Side, Side]:
    """Both models; the weights of a language model by name are read for src alone, and once where src is dst.

    Raises:
        UnknownNameError, CheckpointError: for one that is not there.
    """
    texts = isinstance(request.pairs, str | Path)
    src = _side(request.src, root, device, texts=texts, weights=True)
    if request.dst is request.src or (isinstance(request.dst, str) and request.dst == request.src):
        src.load = None  # it is kept for its second turn
        return src, src
    return src, _side(request.dst, root, device, texts=texts, weights=False)


def _side(what: Any, root: Path | None, device: str, *, texts: bool, weights: bool) -> Side:
    if isinstance(what, models.Loaded) and what.run is not None:
        what = what.run
    if isinstance(what, models.Loaded | nn.Module):
        what = _object(what)
    if isinstance(what, models.Plain | models.Loaded):
        return _held(what)
    if isinstance(what, Run):
        return of_run(what)
    name = str(what)
    if not texts and not name.endswith(".gguf") and "/" not in name and name.partition("@")[0] not in models.OWNERLESS:
        return of_run(runs.resolve_run(name, root))
    if not texts and runs.is_run_folder(Path(name)):
        return of_run(runs.resolve_run(name, root))
    side = _held(models.load_plain(name, device, weights=weights))
    side.load = lambda: models.load_plain(name, device)
    if not weights:
        side.held = None
    return side


def _object(what: models.Loaded | nn.Module) -> models.Loaded | models.Plain:
    """An object of the user's: a transformers decoder whose steps are known goes as from its folder, any other through its hooks."""
    loaded = models.as_model(what)
    inner: Any = None if loaded.origin is None else loaded.origin.module
    plain = inner is not None and of_transformers(inner) and inner.dtype == torch.float32
    if plain and isinstance(stacks.of_transformers(inner), stacks.Native):
        return models.Plain(loaded.name, "wrapped", inner, loaded.tokenizer, loaded.weight_hash)
    return loaded


def of_run(run: Run) -> Side:
    """A run as one side."""
    shape = run.manifest["shape"]
    blocks = SimpleNamespace(n_layers=shape["n_layers"], n_heads=shape["n_heads"], d_heads=shape["d_model"], parallel=False)
    return Side(str(run.name), blocks, models.Limits(shape["n_ctx"], shape["vocabulary"]), shape["d_model"], True, run)


def _held(model: models.Plain | models.Loaded) -> Side:
    """A language model, or whatever has hooks, as one side."""
    bounds = models.limits(model)
    if isinstance(model, models.Plain):
        stack = layout(model)
        name, width = Path(model.name).name or model.name, int(model.model.config.hidden_size)
        return Side(name, stack, bounds, width, isinstance(stack, stacks.Native), None, model.tokenizer, model)
    config: Any = model.model.cfg
    heads = int(getattr(config, "n_heads", 1))
    wide = heads * int(getattr(config, "d_head", model.d_model // heads))
    blocks = SimpleNamespace(n_layers=model.n_layers, n_heads=heads, d_heads=wide, parallel=model.parallel)
    return Side(Path(model.name).name or model.name, blocks, bounds, model.d_model, False, None, model.tokenizer, model)


def task_of(src: Side, dst: Side) -> tuple[RecurrenceTask, int]:
    """Task and horizon that two runs share.

    Raises:
        ConfigError: if one is no run, or they differ.
    """
    for side in (src, dst):
        if side.run is None:
            raise ConfigError(f"{side.name} is no run of a task whose answers are known; give pairs: --prompts FILE, or Pairs(...)")
    assert src.run is not None
    assert dst.run is not None
    for what in ("task", "horizon"):
        if src.run.manifest[what] != dst.run.manifest[what]:
            raise ConfigError(
                f"{src.name} and {dst.name} differ in {what} ({src.run.manifest[what]} and {dst.run.manifest[what]}), "
                "so their answers cannot be compared; give two runs of one task"
            )
    return RecurrenceTask.from_manifest(dst.run.manifest["task"]), int(dst.run.manifest["horizon"])


def check_fit(request: Request, src: Side, dst: Side, pairs: Pairs) -> None:
    """Refuse models that do not go together.

    Raises:
        ConfigError: if their widths, tokenizers or heads do not fit; for what is for runs alone.
    """
    if pairs.kind != PROGRAMS and (request.align != "none" or request.subspace is not None):
        what = f"--align {request.align}" if request.subspace is None else f"--subspace {request.subspace}"
        raise ConfigError(f"{what} is fitted on sequences of a run's task; other pairs are patched as they are")
    if src.tokenizer is not None and dst.tokenizer is not None and src.tokenizer.get_vocab() != dst.tokenizer.get_vocab():
        raise ConfigError(f"{src.name} and {dst.name} have other tokenizers; an index would not mean the same place; give two with one")
    if src.d_model != dst.d_model and request.align != "ridge":
        fix = "; use --align ridge, or runs of one preset" if src.run is not None else ""
        raise ConfigError(f"{src.name} is {src.d_model} wide and {dst.name} {dst.d_model}: their residual streams do not fit{fix}")
    of_heads = any(site.partition(".")[0] in ("z", "heads") for site in request.sites) and request.align != "ridge"
    if of_heads and src.blocks.d_heads != dst.blocks.d_heads:
        wide = f"{src.blocks.d_heads} and {dst.blocks.d_heads}"
        raise ConfigError(f"the heads of {src.name} and {dst.name} are {wide} wide; leave out site z")
