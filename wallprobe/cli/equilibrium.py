"""`wallprobe equilibrium`: train equilibrium models, and the experiments about their training."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, equilibrium_tables, options
from wallprobe.cli.parsing import pairs, words

if TYPE_CHECKING:
    from wallprobe.store.results import Result
    from wallprobe.training.equilibrium.job import Recipe

Preset = Annotated[str, typer.Option("--preset", help="tiny (seconds), demo (minutes on a laptop) or seed (the published scale).")]


@dataclass(frozen=True)
class Reading:
    """What to train on."""

    text: Annotated[Path | None, typer.Option("--text", help="A UTF-8 file to train on.", show_default="the embedded Genesis")] = None
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="tinystories, through the hub. Not beside --text.", show_default="none")
    ] = None
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="characters or bpe.", show_default="the preset's")] = None
    vocabulary: Annotated[int | None, typer.Option("--vocabulary", help="Pieces of BPE.", show_default="the preset's", min=2)] = None


def train(
    method: Annotated[
        str, typer.Option(help="ep, bptt, bp (a one-layer transformer), or an estimator: eqprop-4, implicit, tbptt ...")
    ] = "ep",
    preset: Preset = "demo",
    name: Annotated[str | None, typer.Option(help="Of the run.", show_default="eq-PRESET-METHOD")] = None,
    seed: options.Seed = 42,
    steps: options.Steps = None,
    option: Annotated[list[str] | None, typer.Option(help="Of the estimator: r=auto, r=0.01, steps=32.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="A field of the recipe: lr=1e-3, batch=8, d_model=128, floor=0, most=8, gate=0.001.")
    ] = None,
    snapshots: Annotated[str | None, typer.Option(help="Steps whose state becomes a run of its own: 0,50,200.")] = None,
    warm: Annotated[str | None, typer.Option(help="An equilibrium run or snapshot to go on from.")] = None,
    *,
    reading: Reading,
    force: options.Force = False,
    stores: options.Stores,
) -> None:
    """Train one model; run the same command again to go on after an interruption, to the same bytes."""
    from wallprobe.training.equilibrium import experiments, record, work

    recipe = _recipe(preset, reading, steps)
    if snapshots is not None:
        recipe = replace(recipe, snapshots=_integers(snapshots))
    job = experiments.job(preset, method, seed=seed, recipe=recipe)
    fields = dict(pairs(change or []))
    job = replace(job.changed(name or job.name, warm=warm, **_known(fields)), options=pairs(option or []))
    with _bars() as told:
        (run,) = work.train_all([job], stores.runs, force=force, on_progress=told)
    _print(record.training_result(job, run), stores, equilibrium_tables.log)


def matched(
    preset: Preset = "demo",
    arms: Annotated[str, typer.Option(help="Between commas: ep, bptt, bp, or estimators.")] = "ep,bptt,bp",
    seed: options.Seed = 42,
    steps: options.Steps = None,
    *,
    reading: Reading,
    jobs: options.Jobs = None,
    stores: options.Stores,
) -> None:
    """One recipe, the task's gradient by several rules: is it the architecture, or the rule?"""
    from wallprobe.training.equilibrium import experiments

    recipe = _recipe(preset, reading, steps)
    wanted = [experiments.job(preset, arm, seed=seed, recipe=recipe) for arm in words(arms)]
    with _bars() as told:
        result = experiments.matched(wanted, stores.runs, workers=jobs, on_progress=told)
    _print(result, stores, equilibrium_tables.matched)


def gate(
    preset: Preset = "demo",
    seed: options.Seed = 42,
    *,
    reading: Reading,
    jobs: options.Jobs = None,
    stores: options.Stores,
) -> None:
    """Warm-up against the validity gate: three ways to begin, and when each is first allowed to learn."""
    from wallprobe.training.equilibrium import experiments

    settings = experiments.gate_settings(preset)
    spec = _recipe(preset, reading).text
    settings = replace(settings, recipe=replace(settings.recipe, text=spec))
    with _bars() as told:
        wanted = experiments.gate_jobs(settings, f"eq-{preset}", seed)
        result = experiments.gate_study(wanted, stores.runs, workers=jobs, on_progress=told)
    _print(result, stores, equilibrium_tables.gate)


def grid(
    preset: Preset = "demo",
    base: Annotated[str, typer.Option(help="Whose end all go on from: ep, bptt or an estimator.")] = "ep",
    floors: Annotated[str, typer.Option(help="Least lambdas; the first is the base's.")] = "0.1,0.05,0.03",
    targets: Annotated[str, typer.Option(help="Target residuals; the first is the base's.")] = "1.5e-3,3e-3,5e-3",
    jr_maxs: Annotated[str, typer.Option(help="Greatest lambdas; the last is the base's.")] = "4,8,16,32",
    mode: Annotated[str, typer.Option(help="ofat (one thing at a time) or full.")] = "ofat",
    steps: Annotated[int | None, typer.Option(help="Steps of each training.", show_default="80; tiny 6", min=1)] = None,
    seeds: Annotated[str, typer.Option(help="How many (2: 42, 1337), or which (42,7); at least two.")] = "2",
    seed: options.Seed = 42,
    *,
    reading: Reading,
    jobs: options.Jobs = None,
    stores: options.Stores,
) -> None:
    """Lambda's floor, target and ceiling, each tried from the same trained state."""
    from wallprobe.training.engines.sweep import parse_seeds
    from wallprobe.training.equilibrium import experiments

    recipe = _recipe(preset, reading)
    values = (_floats(floors), _floats(targets), _floats(jr_maxs))
    settings = experiments.GridSettings(*values, mode=mode, steps=steps or experiments.grid_steps(preset), seeds=tuple(parse_seeds(seeds)))
    start = experiments.job(preset, base, seed=seed, recipe=recipe)
    with _bars() as told:
        result = experiments.grid(start, settings, f"eq-{preset}", stores.runs, workers=jobs, on_progress=told)
    _print(result, stores, equilibrium_tables.grid)


def campaign(
    preset: Preset = "demo",
    seed: options.Seed = 42,
    *,
    reading: Reading,
    jobs: options.Jobs = None,
    stores: options.Stores,
) -> None:
    """All experiments at a preset; killed anywhere, the same command goes on."""
    from wallprobe.hooks.diagnostics import campaign as whole

    wanted = whole.plan(preset, _recipe(preset, reading), seed)
    with _bars() as told:
        overview, found = whole.campaign(wanted, stores.runs, stores.results, workers=jobs, on_progress=told)
    if stores.json:
        _print(overview, stores, equilibrium_tables.matched)
        return
    console = common.out()
    for name, table in (("matched", equilibrium_tables.matched), ("gate", equilibrium_tables.gate), ("grid", equilibrium_tables.grid)):
        console.print(table(found[name]))
    for row in overview.values:
        console.print(f"[bold]{row['what']}[/bold]", soft_wrap=True)
        console.print(f"{row['says']}\n", soft_wrap=True, markup=False)
    for result in (found["signs"], overview):
        console.print(result.summary["finding"], style="bold", soft_wrap=True, markup=False)
    console.print("[dim]see it: wallprobe gallery --open[/dim]")


COMMANDS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {"train": train, "matched": matched, "gate": gate, "grid": grid, "campaign": campaign}
)


def group(only: str | None = None) -> typer.Typer:
    """The commands of the group, or one of them by itself."""
    told = "A transformer block run to its fixed point: train it by any estimator, and ask why it stops where it does."
    return common.group(COMMANDS, only, help=told, no_args_is_help=only is None)


def _recipe(preset: str, reading: Reading, steps: int | None = None) -> "Recipe":
    """A preset's recipe with another text or length.

    Raises:
        ConfigError: for a text and a data set, or a data set that is none.
    """
    from wallprobe.errors import ConfigError, UnknownNameError
    from wallprobe.tasks.text import TINYSTORIES
    from wallprobe.training.equilibrium import job

    text, dataset = reading.text, reading.dataset
    if text is not None and dataset is not None:
        raise ConfigError("--text and --dataset are two texts; give one")
    if dataset not in (None, TINYSTORIES):
        raise UnknownNameError(f"no data set '{dataset}'; there is: {TINYSTORIES}")
    recipe = job.preset(preset)
    spec = recipe.text
    if text is not None or dataset is not None:
        spec = replace(spec, source=str(text) if text is not None else TINYSTORIES)
    if reading.tokenizer is not None:
        spec = replace(spec, tokenizer=reading.tokenizer)
    if reading.vocabulary is not None:
        spec = replace(spec, pieces=reading.vocabulary)
    recipe = replace(recipe, text=spec)
    if steps is None:
        return recipe
    return replace(recipe, steps=steps, snapshots=tuple(sorted({step for step in recipe.snapshots if step <= steps} | {steps})))


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of the recipe.

    Raises:
        ConfigError: for one that is none, or cannot be set this way.
    """
    from wallprobe.errors import ConfigError
    from wallprobe.models.equilibrium import EqConfig
    from wallprobe.training.equilibrium.job import Control, Recipe

    whole = {**EqConfig.__dataclass_fields__, **Control.__dataclass_fields__, **Recipe.__dataclass_fields__}
    there = [name for name in whole if name not in ("d_vocab", "model", "text", "control", "snapshots")]
    for name, value in fields.items():
        if name not in there:
            raise ConfigError(f"--set {name}: no such field; there are: {', '.join(there)}")
        kind = whole[name].type
        if (kind is int and not isinstance(value, int)) or (kind is float and isinstance(value, str)):
            raise ConfigError(f"--set {name}={value}: give a number of type {kind.__name__}")
    made = {name: whole[name].type for name in fields}
    return {
        name: float(value) if made[name] is float else _truth(name, value) if made[name] is bool else value
        for name, value in fields.items()
    }


def _truth(name: str, value: Any) -> bool:
    from wallprobe.errors import ConfigError

    known = {"true": True, "false": False, "1": True, "0": False}
    if str(value).lower() not in known:
        raise ConfigError(f"--set {name}={value}: give true or false")
    return known[str(value).lower()]


def _numbers(text: str, kind: type[Any]) -> tuple[Any, ...]:
    from wallprobe.errors import ConfigError

    try:
        return tuple(kind(part) for part in words(text))
    except ValueError as error:
        raise ConfigError(f"'{text}' is no list of numbers, such as {'0,50,200' if kind is int else '0.1,0.05'}") from error


def _floats(text: str) -> tuple[float, ...]:
    return _numbers(text, float)


def _integers(text: str) -> tuple[int, ...]:
    return _numbers(text, int)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each training; a line at the end of each where stderr is no terminal."""
    with common.progress() as view:
        bars: dict[str, Any] = {}
        ended: set[str] = set()

        def told(name: str, done: int, total: int) -> None:
            if name not in bars:
                bars[name] = view.add_task(name, total=total)
            view.update(bars[name], completed=done, total=total)
            if not view.console.is_terminal and done >= total and name not in ended:
                ended.add(name)
                view.console.print(f"{name}: {done} steps", soft_wrap=True, markup=False)

        yield told


def _print(result: "Result", stores: options.Stores, table: "Callable[[Result], Any]") -> None:
    """Store, then one JSON object whose summary has a record a row, or the table and the finding."""
    result.save(stores.results)
    if stores.json:
        whole = result.to_json()
        records = [whole["summary"]] if result.kind == "equilibrium" else [row | whole["summary"] for row in whole["values"]]
        common.print_json(whole | {"summary": records})
        return
    console = common.out()
    console.print(table(result))
    console.print(result.summary["finding"], style="bold", soft_wrap=True, markup=False)
    console.print("[dim]see it: wallprobe gallery --open[/dim]")
