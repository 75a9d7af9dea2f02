"""`wallprobe gains`: how loud each sub-layer of a model is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wallprobe.cli import common, options, reading, streaming

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from wallprobe.hooks.attach.prompt_sets import PromptSet
    from wallprobe.hooks.gains.report import Settings
    from wallprobe.models import Loaded
    from wallprobe.models.streamed import Streamed
    from wallprobe.store.manifest import Stopwatch
    from wallprobe.store.results import Result


def gains(
    models: options.Models,
    *,
    sources: options.Sources,
    gain: Annotated[str, typer.Option(help="sublayer, sublayer_unit, update_ratio, resid_ratio, jacobian or spectral.")] = "sublayer",
    tokens: Annotated[str, typer.Option(help="ratio_of_means, mean_of_ratios, geomean or median.")] = "ratio_of_means",
    positions: Annotated[str, typer.Option(help="What regime and L* are read from: all, no_sink, no_first or last.")] = "all",
    fold: Annotated[bool, typer.Option("--fold", help="Fold norms into weights first: same logits, other gains.")] = False,
    memory: options.Memory,
    l_star: Annotated[
        bool, typer.Option("--l-star", help="Also measure the bottleneck by entropy, rank and trace (as flow and maps do).")
    ] = False,
    norms: Annotated[bool, typer.Option("--norms", help="Also print norms, angles, nets and sinks' shares.")] = False,
    fit: Annotated[bool, typer.Option("--fit", help="Also fit the scaling law through these models (three or more sizes).")] = False,
    remote: Annotated[
        str, typer.Option(help="none, or local: through nnsight the way it would go to NDIF, run here; norms only.")
    ] = "none",
    over_training: Annotated[
        bool, typer.Option("--over-training", help="At every step there are weights of: a run's snapshots, or MODEL@step1 MODEL@step1000.")
    ] = False,
    place: options.Place,
) -> None:
    """Gain of every attention and MLP sub-layer, with and without attention-sink tokens."""
    from wallprobe.cli.scaling import report as report_scaling
    from wallprobe.hooks.attach.remote import check as check_remote
    from wallprobe.hooks.gains import scaling
    from wallprobe.hooks.gains.report import Settings
    from wallprobe.store.manifest import Stopwatch

    settings = Settings.make(gain, tokens, positions)
    sources.check()
    check_remote("nnsight" if remote != "none" else "hooks", remote)
    if over_training:
        more = fold or bool(memory.stream) or l_star or fit or remote != "none"
        _over_training(models, settings, sources, more, place)
        return
    watch = Stopwatch()
    _check_apart(remote, fold or bool(memory.stream) or l_star)
    room = streaming.Room.of(False if remote != "none" else memory.stream, memory, place)
    measured = _measure(models, settings, sources, room, fold=fold, l_star=l_star, remote=remote, runs=place.runs)
    _note_copies(measured)
    law = scaling.scaling(scaling.points_of(measured)) if fit else None
    folders = _save(measured, watch, place.results)
    if place.json:
        told = common.together(measured, "model")
        common.print_json(told if law is None else told | {"scaling": law.to_json()})
        return
    _print(measured, folders, norms)
    if law is not None:
        report_scaling(common.out(), law, law.save(place.results))


def _check_apart(remote: str, whole: bool) -> None:
    from wallprobe.errors import ConfigError

    if remote != "none" and whole:
        raise ConfigError(f"--remote {remote} sends back norms alone; leave --fold, --stream and --l-star out")


def _save(measured: "list[Result]", watch: "Stopwatch", results: Path | None) -> list[Path]:
    """Each model's result, and of several different ones their comparison; the folders of the first."""
    from wallprobe.hooks.gains.series import over_models

    folders = [result.save(results) for result in measured]
    if len({str(result.summary["model"]) for result in measured}) == len(measured) > 1:
        over_models(measured, watch).save(results)
    return folders


def _print(measured: "list[Result]", folders: list[Path], norms: bool) -> None:
    """Each model's tables, and of several a comparison."""
    from wallprobe.cli import gains_tables as tables

    console = common.out()
    for result, folder in zip(measured, folders, strict=True):
        tables.report(console, result, str(folder), norms)
    if len(measured) > 1:
        console.print(tables.comparison(measured))


def _over_training(models: list[str], settings: "Settings", sources: options.Sources, more: bool, place: options.Place) -> None:
    from wallprobe.cli import gain_training
    from wallprobe.errors import ConfigError

    if more:
        raise ConfigError("--over-training reads whole models as they are; leave --fold, --stream, --l-star, --fit and --remote out")
    gain_training.show(gain_training.measure(models, settings, sources, place), place)


def _measure(
    names: list[str],
    settings: "Settings",
    sources: options.Sources,
    room: streaming.Room,
    *,
    fold: bool,
    l_star: bool,
    remote: str,
    runs: Path | None,
) -> "list[Result]":
    """Every model in turn, under one progress view."""
    from wallprobe import models as loading
    from wallprobe.hooks.gains.measure import gains as measure
    from wallprobe.models.folding import folded

    place = loading.pick_device(room.device)
    measured = []
    with common.progress() as view:
        for name in names:
            bar = view.add_task(f"load {reading.short_name(name)}", total=None)
            if room.streams(name):
                measured.append(_stream(name, settings, sources, room, fold or l_star, view, bar))
                continue
            if remote != "none":
                measured.append(_remote(name, settings, sources, remote, place, view, bar))
                continue
            loaded = loading.load(name, place, runs)
            chosen = sources.of(loaded)
            loaded = folded(loaded) if fold else loaded
            view.update(bar, description=f"gains {reading.short_name(name)}", total=len(chosen.tokens), completed=0)
            ways = settings.definition.name, settings.tokens, settings.positions
            result = measure(loaded, chosen, *ways, on_progress=common.follower(view, bar))
            measured.append(_everywhere(result, loaded, chosen, room.results) if l_star else result)
            del loaded
    return measured


def _remote(
    name: str,
    settings: "Settings",
    sources: options.Sources,
    remote: str,
    place: str,
    view: "Progress",
    bar: "TaskID",
) -> "Result":
    """One language model through nnsight."""
    from wallprobe import models as loading
    from wallprobe.hooks.attach.prompt_sets import encode
    from wallprobe.hooks.gains.over_nnsight import remote_gains

    plain = loading.load_plain(name, place)
    chosen = encode(name, plain.tokenizer, loading.limits(plain), *sources)
    view.update(bar, description=f"gains {reading.short_name(name)} (nnsight)", total=len(chosen.tokens), completed=0)
    return remote_gains(plain, chosen, settings, remote, on_progress=common.follower(view, bar))


def _everywhere(result: "Result", loaded: "Loaded", chosen: "PromptSet", results: Path | None) -> "Result":
    """The same with the bottleneck by every rule; the Results that say so are stored beside."""
    from wallprobe.hooks.flow.lens import flow
    from wallprobe.hooks.flow.sheaf import maps

    found: dict[str, object] = {}
    for other in (flow(loaded, chosen), maps(loaded, chosen)):
        other.save(results)
        found |= {key: value for key, value in other.summary.items() if key.startswith("l_star_") and result.summary.get(key) is None}
    return replace(result, summary=result.summary | found)


def _stream(
    name: str,
    settings: "Settings",
    sources: options.Sources,
    room: streaming.Room,
    whole: bool,
    view: "Progress",
    bar: "TaskID",
) -> "Result":
    from wallprobe.errors import ConfigError
    from wallprobe.hooks.gains.streaming import check_definition, stream_gains

    if whole:
        raise ConfigError(
            "--fold and --l-star need the whole model in memory; leave --stream or them out (--gain sublayer_unit has the folded gains)"
        )
    check_definition(settings)

    def work(model: "Streamed", chosen: "PromptSet", state: Path, follow: Callable[[int, int], None]) -> "Result":
        return stream_gains(model, chosen, settings, state=state, max_ram=room.budget, device=room.device, on_progress=follow)

    return streaming.run(name, sources, room, work, view, bar)


def _note_copies(measured: "list[Result]") -> None:
    for same in _same_weights(measured):
        common.err().print(
            f"note: {', '.join(same)} have identical weights (one SHA-256); comparing them says nothing", soft_wrap=True, markup=False
        )


def _same_weights(measured: "list[Result]") -> list[list[str]]:
    """Differently named models whose weight files are the same bytes."""
    names: dict[str, list[str]] = {}
    for result in measured:
        if result.manifest["weight_hash"] and result.manifest["subject"] not in names.setdefault(result.manifest["weight_hash"], []):
            names[result.manifest["weight_hash"]].append(result.manifest["subject"])
    return [group for group in names.values() if len(group) > 1]
