"""Instruments as public functions: any model by name or as an object; pairs, prompts, labelled text by file or in memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from wallprobe.errors import ConfigError
from wallprobe.hooks.attach import labelled
from wallprobe.hooks.attach.any_model import of_wrapped
from wallprobe.hooks.attach.prompt_sets import Prompts, as_prompts
from wallprobe.hooks.interchange import ablation, whole_states
from wallprobe.hooks.interchange import run as one_way
from wallprobe.hooks.interchange.request import BUDGET, Request
from wallprobe.hooks.probes import measure as probes
from wallprobe.hooks.states.heads import heads
from wallprobe.hooks.states.shape import shape
from wallprobe.hooks.wall import attention as patterns
from wallprobe.hooks.wall import geometry as cosines
from wallprobe.models import Loaded, Model, as_model, pick_device, resting
from wallprobe.store.results import Result

Numbers = int | str | Sequence[int | str] | None
Texts = str | Path | Iterable[Mapping[str, Any]] | labelled.Labelled | None


def interchange(
    src: Model,
    dst: Model,
    pairs: Any = 1000,
    *,
    layers: Numbers = None,
    indices: Numbers = None,
    sites: str | Sequence[str] = "resid_pre",
    align: str = "none",
    subspace: str | None = None,
    reads: Sequence[Any] = (),
    intervention: Any = None,
    direction: str = "denoise",
    window: int = 1,
    capable: bool = False,
    sweep: bool = False,
    seed: int = 0,
    budget: float = BUDGET,
    backend: str = "hooks",
    remote: str = "none",
    root: Path | None = None,
    device: str = "auto",
    on_cell: Callable[[int, int], None] | None = None,
) -> Result:
    """Put src's activations into dst, one place at a time, and read whose answer comes out, beside controls.

    Args:
        src, dst: names (a run, hub id, folder or .gguf file) or models of yours; they may be one.
        pairs: of two runs how many pairs of programs are drawn; a JSON Lines file of prompts; or `Pairs`.
        layers: one, several, or all (None or "all").
        indices: indices or names of slots; None for all (of runs at one site, the last two before the read).
        sites: resid_pre, resid_mid, resid_post, attn_out, mlp_out, z, z.3, heads.
        align: "procrustes" or "ridge" fits src's basis to dst's first (runs).
        subspace: only the component in a span is patched (runs): "probes:a,b", "pca:8", "random:8".
        reads: what is read besides: names, functions of (logits [.., pair, vocab], pairs) that give one figure a pair, or reads.
        intervention: what is put there: a name, or a function of (base, source), [pair, width] each; the donor's activation by default.
        direction: "denoise" or "noise".
        window: layers patched at once.
        capable: leave out the pairs that the models do not answer rightly.
        sweep: of runs: from the middle, with p- and q-values, over a table of sites; so are several sites.
        seed: of pairs, controls, bootstrap and permutations.
        budget: GiB that tensors may take beside the weights.
        backend, remote: "nnsight", and "local" for its way to a remote machine run here.
        root: run store.
        device: torch device for models given by name.
        on_cell: called with (cells done, cells in all).

    Raises:
        WallprobeError: as `hooks.interchange.run.interchange`.
    """
    chosen = tuple(sites.split(",")) if isinstance(sites, str) else tuple(sites)
    request = Request(
        src,
        dst,
        _numbers(layers),  # type: ignore[arg-type]
        _numbers(indices),
        chosen,
        align,
        pairs,
        seed,
        subspace,
        backend,
        remote,
        budget,
        sweep,
        tuple(reads),
        intervention,
        direction,
        window,
        capable,
    )
    held = [as_model(one) for one in ((src,) if src is dst else (src, dst)) if isinstance(one, Loaded | nn.Module)]
    with resting(*held):
        result = one_way.interchange(request, root=root, device=pick_device(device), on_cell=on_cell)
    return of_wrapped(result, *held)


def _numbers(given: Numbers) -> tuple[int | str, ...] | None:
    if given is None or (isinstance(given, str) and given == "all"):
        return None
    return (given,) if isinstance(given, int | str) else tuple(given)


def probe(model_or_acts: Any, labels: Any = None, *, device: str = "auto", root: Path | None = None, **options: Any) -> Result:
    """What can be read off states linearly, on data held out, beside shuffled labels.

    Args:
        model_or_acts: a run (its task gives the labels), any model (`labels` is labelled text), or activations [sample, width] or
            [place, sample, width].
        labels: a JSON Lines file or records {"text"|"tokens", "label", "index"?}; of activations, one label a sample.
        device, root: for models given by name.
        options: as `hooks.probes.measure.probe`.

    Raises:
        WallprobeError: as `hooks.probes.measure.probe`.
    """
    if not isinstance(model_or_acts, str | Path | nn.Module | Loaded) and not hasattr(model_or_acts, "manifest"):
        acts = model_or_acts if isinstance(model_or_acts, Tensor) else getattr(model_or_acts, "values", model_or_acts)
        return probes.probe(acts, labels, **options)
    place = pick_device(device)
    loaded = as_model(model_or_acts, place, root)
    if labels is None:
        if loaded.run is None:
            raise ConfigError(f"{loaded.name} is no run whose task gives labels; give labelled text: labels=FILE or records")
        return probes.probe(loaded.run, device=place, **options)
    with resting(loaded):
        return of_wrapped(probes.probe(loaded, labelled=_labelled(loaded, labels), device=place, **options), loaded)


def _labelled(loaded: Loaded, given: Any) -> labelled.Labelled:
    if isinstance(given, labelled.Labelled):
        return given
    return labelled.read(loaded, given) if isinstance(given, str | Path) else labelled.given(loaded, given)


def attention(model: Model, prompts: Prompts = None, *, device: str = "auto", root: Path | None = None, **options: Any) -> Result:
    """Where heads look: of a run its patterns on one sequence; of any other model, or on prompts, statistics of every head.

    Args:
        model: a name or a model of yours.
        prompts: texts, token ids, or the name of a set or file.
        device, root: for models given by name.
        options: as `hooks.wall.attention.attention` and `hooks.states.heads.heads`.
    """
    place = pick_device(device)
    loaded = as_model(model, place, root)
    if loaded.run is not None and prompts is None:
        return patterns.attention(loaded.run, device=place, **options)
    with resting(loaded):
        return of_wrapped(heads(loaded, as_prompts(loaded, prompts), device=place, **options), loaded)


def ablate(
    model: Model, prompts: Prompts = None, *, subspace: str | None = None, device: str = "auto", root: Path | None = None, **options: Any
) -> Result:
    """What a model's answers need: whole states at every site and layer replaced, or, of a run, the component in a subspace.

    Args:
        model: a name or a model of yours.
        prompts: texts, token ids, or the name of a set or file.
        subspace: of a run: "probes:a,b", "pca:8" or "random:8".
        device, root: for models given by name.
        options: fields of `hooks.interchange.whole_states.Request`; with a subspace of `hooks.interchange.ablation.Ablation`.
    """
    place = pick_device(device)
    loaded = as_model(model, place, root)
    if subspace is not None:
        if loaded.run is None:
            raise ConfigError(f"{loaded.name} is no run: a subspace is fitted on a run's task; leave subspace out")
        return ablation.ablate(loaded.run, ablation.Ablation(subspace, **options), device=place)
    with resting(loaded):
        request = whole_states.Request(**options)
        return of_wrapped(whole_states.ablate_states(loaded, as_prompts(loaded, prompts), request, device=place), loaded)


def geometry(
    model: Model, prompts: Prompts = None, *, labels: Texts = None, device: str = "auto", root: Path | None = None, **options: Any
) -> Result:
    """The shape of a model's states: of a run cosines between programs, of any model, on prompts, dimension, anisotropy, separation.

    Args:
        model: a name or a model of yours.
        prompts: texts, token ids, or the name of a set or file.
        labels: labelled text in their place: class separation as well.
        device, root: for models given by name.
        options: as `hooks.wall.geometry.geometry` and `hooks.states.shape.shape`.
    """
    place = pick_device(device)
    loaded = as_model(model, place, root)
    if loaded.run is not None and prompts is None and labels is None:
        return cosines.geometry(loaded.run, device=place, **options)
    with resting(loaded):
        read = as_prompts(loaded, prompts) if labels is None else _labelled(loaded, labels)
        return of_wrapped(shape(loaded, read, device=place, **options), loaded)
