"""`wallprobe attention`: what each head looks at, of a run on one sequence or of any model over prompts."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options, subjects
from wallprobe.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from wallprobe.store.results import Result

SHADES = " ░▒▓█"


def attention(
    models: options.Models,
    example: Annotated[str | None, typer.Option(help="Of a run: draw a program or a noise sequence.", show_default="program")] = None,
    tokens: Annotated[str | None, typer.Option(help="Of a run: this sequence instead, such as 3,7,11,15.")] = None,
    seed: options.Seed = 0,
    *,
    sources: options.Sources,
    place: options.Place,
) -> None:
    """Attention: of a run its patterns on one sequence; of any other model every head's entropy, shares of the first, same and previous
    token, mean distance and induction score over prompts, beside uniform attention."""
    if subjects.all_runs(models):
        subjects.refuse("runs, which read sequences of their own task", prompts=sources.prompts, limit=sources.limit)
        _of_run(models, example or "program", tokens, seed, place)
        return
    from wallprobe.hooks.states.heads import heads

    subjects.refuse("models that are no runs", example=example, tokens=tokens)
    device = place.pick()
    subjects.measure(
        models,
        "attention",
        lambda loaded, read, follow: heads(loaded, read, seed=seed, device=device, follow=follow),
        sources,
        None,
        place,
        _heads,
    )


def _of_run(names: list[str], example: str, tokens: str | None, seed: int, place: options.Place) -> None:
    """One run's patterns on one sequence."""
    from wallprobe.cli.parsing import numbers_in_order as parse_numbers_in_order
    from wallprobe.hooks.wall.attention import attention as measure
    from wallprobe.store.runs import resolve_run

    if len(names) > 1:
        raise ConfigError(f"{len(names)} runs given; the patterns of a run are looked at one by one, give one")
    given = None if tokens is None else parse_numbers_in_order(tokens, "tokens")
    result = measure(resolve_run(names[0], place.runs), example=example, tokens=given, seed=seed, device=place.pick())
    common.finish(result, place, _tell)


MAPS = {"first": "first token", "previous": "token before", "entropy": "entropy", "induction_excess": "induction"}
STRONGEST = 3  # heads that are named of a statistic


def _heads(result: "Result") -> Any:
    """A row a layer: every head as a shade of its share or score, and the layer's mean figures; then the strongest heads."""
    from rich.markup import escape

    from wallprobe.cli.packed import Packed

    data = result.data
    shown = {name: words for name, words in MAPS.items() if name in data}
    rows = []
    for layer in range(data.sizes["layer"]):
        at = data.isel(layer=layer)
        cells = [str(layer)]
        for name in shown:
            most = float(data[name].max()) if name == "entropy" else 1.0
            shades = "".join(SHADES[max(0, min(4, round(value / most * 4 if most else 0)))] for value in at[name].values.tolist())
            cells.append(f"{shades}│ {float(at[name].mean()):.2f}")
        rows.append([*cells, f"{float(at['itself'].mean()):.2f}", f"{float(at['distance'].mean()):.1f}"])
    heads = ("layer", *(f"{words}\nby head│mean" for words in shown.values()), "itself\nmean", "distance\nmean")
    uniform = ", ".join(f"{words} {float(data[f'{name}_uniform'][0, 0]):.2f}" for name, words in MAPS.items() if f"{name}_uniform" in data)
    summary = result.summary
    title = escape(f"Attention of {summary['model']} on {summary['prompts']}, {summary['n_prompts']} prompts: one shade a head")
    caption = (
        f"shades: 0 to 1, of the entropy to its largest (nats); uniform attention: {uniform}; induction: beyond the same offset unrepeated"
    )
    return Packed(title, heads, rows, caption), *_strongest(result, list(shown))


def _strongest(result: "Result", names: list[str]) -> list[str]:
    """The heads with the largest figures."""
    lines = []
    for name in names:
        records = sorted(result.values, key=lambda one: -float(one[name]))[:STRONGEST]
        half = {id(one): (one[f"{name}_high"] - one[f"{name}_low"]) / 2 for one in records}
        told = ", ".join(f"{one['layer']}.{one['head']} {one[name]:.2f} ±{half[id(one)]:.2f}" for one in records)
        lines.append(f"most {MAPS[name]}: {told}")
    return lines


def _tell(out: "Console", result: "Result") -> None:
    """What each head of the last token looks at."""
    out.print(f"{result.summary['run']} on {result.summary['tokens']}")
    last = result.data["pattern"].isel(query=-1).values
    out.print("What the last token's heads look at (one row a layer, one block a head, first token left):")
    for layer, heads in enumerate(last):
        out.print(
            f"  layer {layer}  " + "  ".join("".join(SHADES[min(4, int(weight * 5))] for weight in head) for head in heads), markup=False
        )
