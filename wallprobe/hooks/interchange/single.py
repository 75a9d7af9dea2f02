"""Interchange: put one network's activation into another and read which answer comes out.

Program sequences A run in src, B in dst; src's activation at (layer, index, site) replaces dst's; the logits at index K-1 are read.
Three answers are told apart: dst's own (a_B x_B + b_B), the donor's rule on dst's operand (a_A x_B + b_A), and the donor's
own prediction (a_A x_A + b_A). Controls stand beside every cell; the self-patch must change nothing, to the bit.
Source: the wall study, "No localized circuit exists" (phase 2a of the auxiliary-causal experiment).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach import cache, remote
from wallprobe.hooks.attach.interventions import Intervention, NormMatched, OtherDonor, Swap
from wallprobe.hooks.interchange import alignment, subspaces
from wallprobe.hooks.interchange.pairs import Pairs, draw_pairs
from wallprobe.hooks.interchange.report import Cell, make_result
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result
from wallprobe.store.runs import Run, resolve_run
from wallprobe.tasks.recurrence import RecurrenceTask

FIT_SEQUENCES = 4000
# sites that write nothing later indices can read within the same block
LATE_SITES = ("resid_mid", "resid_post", "attn_out", "mlp_out", "z")


@dataclass(frozen=True)
class Request:
    """What to interchange.

    Attributes:
        src: donor run.
        dst: receiving run.
        layers: layers to patch, one at a time; None for all.
        indices: indices to patch, one at a time; None for the last two before the read.
        site: one of `models.SITES`.
        align: "none", "procrustes" or "ridge".
        pairs: pairs drawn; those whose three answers coincide, or whose donor shows no rule, are dropped.
        seed: of pairs, controls and bootstrap.
        subspace: None for the whole state, else what `subspaces.parse` reads: only the component in it is patched.
        backend: "hooks" (transformer-lens), or "nnsight".
    """

    src: str
    dst: str
    layers: tuple[int, ...] | None
    indices: tuple[int, ...] | None = None
    site: str = "resid_pre"
    align: str = "none"
    pairs: int = 1000
    seed: int = 0
    subspace: str | None = None
    backend: str = "hooks"


def interchange(
    request: Request, *, root: Path | None = None, device: str = "cpu", on_cell: Callable[[int, int], None] | None = None
) -> Result:
    """Run an interchange between two runs; src is freed before dst is loaded.

    Args:
        request: what to interchange.
        root: run store.
        device: torch device.
        on_cell: called with (cells done, cells in all).

    Returns:
        Result of kind "interchange", table over layer x index.

    Raises:
        UnknownNameError, CheckpointError: for a run or site that is not there, or is damaged.
        ConfigError: for a layer, index or pair of runs that cannot be interchanged.
        InstrumentError: if a hook did not fire exactly once, a patch changed nothing, or the self-patch changed something.
    """
    watch = Stopwatch()
    remote.check(request.backend)
    runs = resolve_run(request.src, root), resolve_run(request.dst, root)
    request, task, horizon = resolve(request, *runs)
    assert request.layers is not None
    assert request.indices is not None
    names = {layer: models.hook_name(layer, request.site) for layer in request.layers}
    pairs = draw_pairs(task, horizon, request.pairs, request.seed)
    fit_tokens = task.sample(FIT_SEQUENCES, generator(request.seed, "alignment")).tokens[:, :horizon]

    src = models.load_run(runs[0], device)
    _check_hooks(src, list(names.values()))
    donor, donor_log = observe(src, pairs.donor, list(names.values()), request.indices, horizon, _tracer(request, src))
    fit_src = cache.capture(src, fit_tokens, list(names.values()), keep=request.indices) if request.align != "none" else {}
    del src

    dst = models.load_run(runs[1], device)
    _check_hooks(dst, list(names.values()))
    tracer = _tracer(request, dst)
    base, base_log = observe(dst, pairs.base, list(names.values()), request.indices, horizon, tracer)
    fit_dst = cache.capture(dst, fit_tokens, list(names.values()), keep=request.indices) if request.align != "none" else {}
    spans = _spans(request, dst, task)

    cells: dict[tuple[int, int], Cell] = {}
    for layer, name in names.items():
        for slot, index in enumerate(request.indices):
            fitted = alignment.fit(request.align, fit_src[name][:, slot], fit_dst[name][:, slot]) if fit_src else None
            patcher = Patcher(dst, pairs.base, name, index, base[name][:, slot], base_log, horizon, tracer)
            cells[layer, index] = measure(patcher, donor[name][:, slot], pairs, request.seed, fitted, spans.get((layer, index)))
            if on_cell is not None:
                on_cell(len(cells), len(names) * len(request.indices))
    return make_result(asdict(request), runs, task, horizon, pairs, cells, base_log, donor_log, device, watch)


def _spans(request: Request, dst: models.Loaded, task: RecurrenceTask) -> dict[tuple[int, int], subspaces.Fitted]:
    """The subspace at every cell, in dst's basis; none where whole states are patched."""
    if request.subspace is None:
        return {}
    assert request.layers is not None
    assert request.indices is not None
    drawn = subspaces.draw(task, request.seed)
    states = subspaces.observe(dst, drawn, request.layers, request.indices, request.site)
    return subspaces.fit(subspaces.parse(request.subspace), states, drawn, task, request.seed)


def resolve(request: Request, src: Run, dst: Run) -> tuple[Request, RecurrenceTask, int]:
    """Check the request against both runs and fill in its defaults."""
    models.hook_name(0, request.site)
    if request.subspace is not None:
        subspaces.parse(request.subspace)
    if request.align not in alignment.ALIGNMENTS:
        raise ConfigError(f"--align {request.align} is none of {', '.join(alignment.ALIGNMENTS)}")
    for what in ("task", "horizon"):
        if src.manifest[what] != dst.manifest[what]:
            raise ConfigError(
                f"{src.name} and {dst.name} differ in {what} ({src.manifest[what]} and {dst.manifest[what]}), "
                "so their answers cannot be compared; give two runs of one task"
            )
    widths = src.manifest["shape"]["d_model"], dst.manifest["shape"]["d_model"]
    if widths[0] != widths[1] and request.align != "ridge":
        raise ConfigError(
            f"{src.name} is {widths[0]} wide and {dst.name} {widths[1]}: their residual streams do not fit; "
            "use --align ridge, or runs of one preset"
        )
    horizon = int(dst.manifest["horizon"])
    depth = min(run.manifest["shape"]["n_layers"] for run in (src, dst))
    layers = tuple(range(depth)) if request.layers is None else request.layers
    wrong = [layer for layer in layers if not 0 <= layer < depth]
    if wrong:
        raise ConfigError(f"layer {wrong[0]} does not exist in {src.name} and {dst.name}; give 0 to {depth - 1}, or 'all'")
    asked = request.indices is not None
    indices = request.indices if request.indices is not None else (horizon - 2, horizon - 1)
    wrong = [index for index in indices if not 0 <= index < horizon]
    if wrong:
        raise ConfigError(f"index {wrong[0]} cannot matter: the answer is read at index {horizon - 1}; give 0 to {horizon - 1}")
    if request.site in LATE_SITES and depth - 1 in layers and any(index < horizon - 1 for index in indices):
        if asked or len(layers) > 1:
            raise ConfigError(
                f"site {request.site} of the last layer, {depth - 1}, cannot be read from another index: "
                f"a patch there before index {horizon - 1} "
                f"changes nothing; give --index {horizon - 1}, or site resid_pre"
            )
        indices = (horizon - 1,)
    return replace(request, layers=layers, indices=indices), RecurrenceTask.from_manifest(dst.manifest["task"]), horizon


def _tracer(request: Request, loaded: models.Loaded) -> remote.Tracer | None:
    return remote.Tracer(loaded.name, loaded.model) if request.backend == "nnsight" else None


def _check_hooks(loaded: models.Loaded, names: Sequence[str]) -> None:
    """Refuse hook names that the model does not have, before it computes anything.

    Raises:
        InstrumentError: naming them.
    """
    missing = [name for name in names if name not in loaded.points]
    if missing:
        raise InstrumentError(f"{loaded.name} has no hook {', '.join(missing)}; choose another --site")


def observe(
    loaded: models.Loaded,
    tokens: Int[Tensor, "pair index"],
    names: Sequence[str],
    indices: Sequence[int],
    horizon: int,
    tracer: remote.Tracer | None = None,
) -> tuple[dict[str, Float[Tensor, "pair kept width"]], Float[Tensor, "pair vocab"]]:
    """Activations at the hooks and log-probabilities at the read index, from one forward pass over all pairs.

    One pass of the batch that will be patched: in other batches a kernel may round differently, and the self-patch is held to the bit.

    Raises:
        InstrumentError: if a hook does not fire exactly once.
    """
    seen: dict[str, Tensor] = {}
    kept = list(indices)
    if tracer is not None:
        found, ends = tracer.look(tokens.to(_device(loaded)), [(name, False) for name in names], [kept] * len(names))
        return dict(zip(names, (value.cpu() for value in found), strict=True)), _read(ends[:, None], 1)
    logits = cache.run(loaded, tokens, {name: cache.recorder(seen, name, lambda value: value[:, kept].flatten(2)) for name in names})
    cache.check_fired(loaded, names, seen)
    return seen, _read(logits, horizon)


def _device(loaded: models.Loaded) -> torch.device:
    return next(loaded.model.parameters()).device


def _read(logits: Float[Tensor, "pair index vocab"], horizon: int) -> Float[Tensor, "pair vocab"]:
    """Log-probabilities (fp64) at the read index K-1."""
    return logits[:, horizon - 1].double().log_softmax(-1).cpu()


@dataclass(frozen=True)
class Patcher:
    """One slot of dst on its base sequences: patches it and reads the answer.

    Attributes:
        clean: the activation that stands there.
        base_log: log-probabilities without a patch.
        tracer: patches through nnsight instead of transformer-lens's hooks.
    """

    dst: models.Loaded
    tokens: Int[Tensor, "pair index"]
    hook: str
    index: int
    clean: Float[Tensor, "pair width"]
    base_log: Float[Tensor, "pair vocab"]
    horizon: int
    tracer: remote.Tracer | None = None

    def __call__(self, intervention: Intervention, source: Float[Tensor, "pair d_src"]) -> tuple[Float[Tensor, "pair vocab"], float]:
        """Log-probabilities under the patch, and its largest change at the hook.

        Raises:
            InstrumentError: if the hook did not fire exactly once.
        """
        patched = intervention(self.clean, source)
        if self.tracer is not None:
            ends, change = self.tracer.patch(self.tokens.to(_device(self.dst)), (self.hook, False), self.index, patched)
            return _read(ends[:, None], 1), change
        fired = []

        def put(value: Tensor, hook: Any) -> Tensor:
            shape = value[:, self.index].shape
            value = value.clone()
            fired.append(float((patched.to(value).view(shape) - value[:, self.index]).abs().max()))
            value[:, self.index] = patched.to(value).view(shape)
            return value

        logits = cache.run(self.dst, self.tokens, {self.hook: put})
        if len(fired) != 1:
            raise InstrumentError(f"hook {self.hook} of {self.dst.name} fired {len(fired)} times in one forward pass; expected once")
        return _read(logits, self.horizon), fired[0]


def measure(
    patcher: Patcher,
    source: Float[Tensor, "pair d_src"],
    pairs: Pairs,
    seed: int,
    fitted: alignment.Alignment | None,
    span: subspaces.Fitted | None = None,
) -> Cell:
    """One cell: the treatment, its four controls and, where aligned, the raw swap beside; in a subspace also a random span and the
    whole state.

    Raises:
        InstrumentError: if the treatment changed nothing, or the self-patch changed anything.
    """
    whole: Intervention = Swap() if fitted is None else fitted.swap
    treatment = whole if span is None else subspaces.InSubspace(whole, span.axes)
    log, at_hook = patcher(treatment, source)
    at_logits = float((log - patcher.base_log).abs().max())
    where = f"patch at {patcher.hook}, index {patcher.index}"
    if at_hook == 0.0 or at_logits == 0.0:
        raise InstrumentError(
            f"{where} changed nothing (at the hook {at_hook}, at the answer {at_logits}); are src, dst and the sequences the same?"
        )
    unaligned: Intervention = Swap() if span is None else subspaces.InSubspace(Swap(), span.axes)
    untouched, self_hook = patcher(unaligned, patcher.clean)
    self_change = max(self_hook, float((untouched - patcher.base_log).abs().max()))
    if self_change != 0.0:
        raise InstrumentError(
            f"{where}: putting {patcher.dst.name}'s own activation back changed the answer by {self_change}; the hook is not what it seems"
        )
    norm = NormMatched(whole, seed) if span is None else subspaces.NormMatchedInside(whole, span.axes, seed)
    return Cell(
        treated=log,
        random=patcher(OtherDonor(treatment, pairs.shuffled), source)[0],
        mismatched=patcher(OtherDonor(treatment, pairs.mismatched), source)[0],
        norm=patcher(norm, source)[0],
        raw=patcher(unaligned, source)[0] if fitted is not None and source.shape == patcher.clean.shape else None,
        self_patch_max_change=self_change,
        change_at_hook=at_hook,
        change_at_logits=at_logits,
        alignment_r2=None if fitted is None else fitted.held_out_r2,
        span=None if span is None else patcher(subspaces.InSubspace(whole, span.control), source)[0],
        whole=None if span is None else patcher(whole, source)[0],
        more={} if span is None else span.figures(),
    )


def parse_layers(text: str) -> tuple[int, ...] | None:
    """Read `3`, `0,2,4` or `all` (None).

    Raises:
        ConfigError: for anything else.
    """
    return None if text == "all" else parse_numbers(text, "layer")


def parse_numbers(text: str, what: str) -> tuple[int, ...]:
    """Read `3` or `3,4`, without repeats and sorted.

    Raises:
        ConfigError: for anything else.
    """
    return tuple(sorted(set(parse_numbers_in_order(text, what))))


def parse_numbers_in_order(text: str, what: str) -> tuple[int, ...]:
    """Read `3` or `7,3,7` as written.

    Raises:
        ConfigError: for anything else.
    """
    parts: Sequence[str] = text.split(",")
    if not all(part.strip().lstrip("-").isdigit() for part in parts):
        raise ConfigError(f"--{what} '{text}' is not a number or a list of numbers such as 3 or 2,3,4")
    return tuple(int(part) for part in parts)
