"""`wallprobe audit`: is that alignment figure a measurement at all? Runs, a report, a campaign, and a model of your own."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import audit_tables, common, options
from wallprobe.cli.parsing import pairs, words
from wallprobe.training.audit.thresholds import Thresholds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wallprobe.store.results import Result
    from wallprobe.training.audit.job import AuditJob
    from wallprobe.training.audit.loop import Progress


def run(
    arch: Annotated[
        str, typer.Option(help="resmlp, vit, student, bncnn; several with commas, or all; wall: a HookedTransformer.")
    ] = "resmlp",
    method: Annotated[str, typer.Option(help="bp, fa, dfa, ep, frozen, or a plugin's; several with commas.")] = "dfa",
    seeds: options.Seeds = "1",
    data: Annotated[str, typer.Option(help="digits (embedded), fashion_mnist, cifar10, synthetic; of wall, its task.")] = "digits",
    epochs: Annotated[int | None, typer.Option(help="Epochs.", show_default="the data's usual", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step.", show_default="the data's usual", min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Adam's learning rate.", show_default="the data's usual")] = None,
    label_noise: Annotated[
        float | None, typer.Option(help="Share of training labels redrawn each epoch.", show_default="0.7; cifar10 0")
    ] = None,
    norm_penalty: Annotated[float, typer.Option(help="Weight of the states' mean squares in the loss.")] = 0.0,
    terminal_ln: Annotated[bool, typer.Option("--terminal-ln/--no-terminal-ln", help="Layer norm before the head.")] = True,
    width: Annotated[int | None, typer.Option(help="Width of the states.", show_default="the architecture's", min=1)] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks.", show_default="the architecture's", min=1)] = None,
    heads: Annotated[int, typer.Option(help="Attention heads of vit and wall.", min=1)] = 4,
    mlp_ratio: Annotated[int | None, typer.Option(help="Hidden over width.", show_default="resmlp 1, vit 4", min=1)] = None,
    patch: Annotated[int | None, typer.Option(help="Side of ViT-Mini's patches.", show_default="4; 2 on digits", min=1)] = None,
    broadcast: Annotated[str, typer.Option(help="A credit reaches all tokens or the class token (cls).")] = "all",
    samples: Annotated[int | None, typer.Option(help="Training samples of an epoch.", show_default="all", min=1)] = None,
    option: Annotated[list[str] | None, typer.Option(help="Of the method: beta=0.01, steps=50, gamma=0.3 (ep), fa_ln=true (fa).")] = None,
    stop_on: Annotated[str | None, typer.Option(help="degenerate: stop where (b) or (a') goes on holding.")] = None,
    *,
    limits: Thresholds,
    patience: Annotated[
        int, typer.Option(help="Further epochs for which (b) or (a') must hold before an early stop.", min=0)
    ] = Thresholds.patience,
    baseline: Annotated[bool, typer.Option("--baseline/--no-baseline", help="Also train the frozen-blocks baseline of each seed.")] = True,
    jobs: options.Jobs = None,
    force: options.Force = False,
    stores: options.Stores,
) -> None:
    """Train by a method and audit it epoch by epoch; run the same command again to go on after an interruption."""
    from wallprobe.training.audit.job import make_job
    from wallprobe.training.engines.sweep import parse_seeds
    from wallprobe.training.estimators.nets import NETS, Sizes

    limits = replace(limits, patience=patience)
    sizes = Sizes(width, depth, mlp_ratio, patch, heads, terminal_ln=terminal_ln, broadcast=broadcast)
    given: dict[str, Any] = {"epochs": epochs, "batch": batch, "lr": lr, "label_noise": label_noise, "samples": samples}
    given |= {"penalty": norm_penalty, "sizes": sizes, "options": pairs(option or []), "stop": stop_on}
    given |= {"thresholds": limits} if stop_on else {}
    wanted = [
        make_job(one, which, data, seed, **given)
        for one in words(arch, tuple(NETS))
        for seed in parse_seeds(seeds)
        for which in words(method)
    ]
    complete(wanted, stores.runs, baseline=baseline, workers=jobs, force=force)
    _show(wanted, limits, stores, subject=f"{arch} {method} {data}")


def campaign(
    seeds: options.Seeds = "3",
    data: Annotated[str, typer.Option(help="fashion_mnist, digits, cifar10 or synthetic.")] = "fashion_mnist",
    *,
    limits: Thresholds,
    jobs: options.Jobs = None,
    stores: options.Stores,
) -> None:
    """Four architectures by bp, fa, dfa and frozen blocks, on every seed; killed anywhere, the same command goes on."""
    from wallprobe.training.audit import campaign as plan
    from wallprobe.training.engines.sweep import parse_seeds

    wanted = plan.campaign(parse_seeds(seeds), data)
    complete(wanted, stores.runs, baseline=False, workers=jobs, force=False)
    _show(wanted, limits, stores, subject=f"campaign {data}")


def check(
    source: Annotated[
        str, typer.Argument(help="module:function or file.py:function of your adapter, an audit run, or a run (c0).", metavar="RUN|ADAPTER")
    ],
    method: Annotated[str | None, typer.Option(help="Whose credits, for a run such as c0: dfa, fa or bp.", show_default="dfa")] = None,
    samples: Annotated[int, typer.Option(help="Samples to look at.", min=2)] = 1024,
    *,
    limits: Thresholds,
    stores: options.Stores,
) -> None:
    """Audit a torch model of your own, or a finished audit run, as it stands (see docs/audit.md for the adapter)."""
    from wallprobe.hooks.audit import check as instrument
    from wallprobe.training.audit.quantities import Lens

    result = instrument.check(instrument.load_subject(source, stores.runs, method), limits, Lens(samples=samples))
    result.save(stores.results)
    if stores.json:
        common.print_json(result.to_json())
    else:
        audit_tables.show([result], result)


def report(
    data: Annotated[str | None, typer.Option(help="Only of these data.")] = None,
    arch: Annotated[str | None, typer.Option(help="Only of these architectures.")] = None,
    method: Annotated[str | None, typer.Option(help="Only of these methods.")] = None,
    *,
    limits: Thresholds,
    stores: options.Stores,
) -> None:
    """Every stored audit side by side, judged by these thresholds. Trains nothing."""
    from wallprobe.errors import UnknownNameError
    from wallprobe.training.audit.campaign import stored

    found, damaged = stored(stores.runs)
    for line in damaged:
        common.err().print(f"left out: {line}", soft_wrap=True, markup=False)
    chosen = {"data": data, "arch": arch, "method": method}
    wanted = [job for job, _ in found if all(text is None or getattr(job, key) in text.split(",") for key, text in chosen.items())]
    if not wanted:
        raise UnknownNameError("no finished audit of that kind; make one first: wallprobe audit run --arch resmlp --method dfa --seeds 3")
    named = " ".join(f"{text}" for text in chosen.values() if text)
    _show(wanted, limits, stores, subject=f"report {named}".strip())


COMMANDS: Mapping[str, Callable[..., None]] = MappingProxyType({"run": run, "report": report, "campaign": campaign, "check": check})


def group(only: str | None = None) -> typer.Typer:
    """The commands of the group, or one of them by itself."""
    told = "Audit a training method: what it uses as credit, against the true gradient."
    return common.group(COMMANDS, only, help=told, no_args_is_help=only is None)


def complete(wanted: "Sequence[AuditJob]", root: Path | None, *, baseline: bool, workers: int | None, force: bool) -> None:
    """Train what is missing under a progress view; exit code 2, each with its reason, if something could not be done."""
    from wallprobe.training.audit.campaign import run_all, with_baselines
    from wallprobe.training.audit.loop import finished

    todo = with_baselines(wanted) if baseline else list(wanted)
    with common.progress() as view:
        total = sum(job.epochs for job in todo)
        before = {job.name: 0 for job in todo}
        bar = view.add_task(f"audit {len(todo)} runs", total=total)

        def follow(told: "Progress") -> None:
            before[told.job.name] = told.epoch
            said = f"{told.job.label} epoch {told.epoch}  loss {told.loss:.3f}  accuracy {told.accuracy:.3f}"
            view.update(bar, completed=sum(before.values()), description=said)
            if not view.console.is_terminal and told.epoch == told.job.epochs:
                view.console.print(said, soft_wrap=True, markup=False)

        failures = run_all(todo, root, workers=workers, force=force, on_progress=follow)
    for failure in failures:
        common.err().print(f"wallprobe: {failure.job.label}: {failure.error}", soft_wrap=True, markup=False)
    if failures or any(finished(job, root) is None for job in wanted):
        raise typer.Exit(2)


def _show(wanted: "Sequence[AuditJob]", limits: Thresholds, stores: options.Stores, subject: str) -> None:
    """Judge, store one Result of them all, and print."""
    from wallprobe.store.manifest import Stopwatch, provenance
    from wallprobe.training.audit.campaign import judge_with_baseline
    from wallprobe.training.audit.loop import finished
    from wallprobe.training.audit.record import combine

    watch = Stopwatch()
    judged: list[Result] = []
    for job in wanted:
        done = finished(job, stores.runs)
        assert done is not None
        judged.append(judge_with_baseline(job, done, limits, stores.runs))
    config = {"runs": [job.name for job in wanted], "thresholds": limits.config()}
    manifest = provenance(
        config=config, device="cpu", dtype="norms and cosines float64", watch=watch, seeds=sorted({job.seed for job in wanted})
    )
    whole = combine(judged, subject, manifest)
    whole.save(stores.results)
    if stores.json:
        common.print_json(common.together(judged, "run") if len(judged) == 1 else _several(judged, whole))
        return
    audit_tables.show(judged, whole)


def _several(judged: "Sequence[Result]", whole: "Result") -> dict[str, Any]:
    """One object of several runs: a record each, and the long tables one after the other."""
    from wallprobe.store.results import plain

    values = [record for result in judged for record in result.values]
    return {"kind": "audit", "summary": [plain(result.summary) for result in judged], "values": values, "manifest": plain(whole.manifest)}
