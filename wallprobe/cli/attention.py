"""`wallprobe attention`: what each head of a run looks at."""

from typing import TYPE_CHECKING, Annotated

import typer

from wallprobe.cli import common, options

if TYPE_CHECKING:
    from rich.console import Console

    from wallprobe.store.results import Result

SHADES = " ░▒▓█"


def attention(
    name: Annotated[str, typer.Argument(help="Run: c0, p5@1337.", metavar="RUN")],
    example: Annotated[str, typer.Option(help="Draw a program or a noise sequence.")] = "program",
    tokens: Annotated[str | None, typer.Option(help="This sequence instead, such as 3,7,11,15.")] = None,
    seed: options.Seed = 0,
    *,
    place: options.Place,
) -> None:
    """Attention patterns of a run on one sequence, for the gallery."""
    from wallprobe.cli.parsing import numbers_in_order
    from wallprobe.hooks.wall.attention import attention as measure
    from wallprobe.store.runs import resolve_run

    given = None if tokens is None else numbers_in_order(tokens, "tokens")
    result = measure(resolve_run(name, place.runs), example=example, tokens=given, seed=seed, device=place.pick())
    common.finish(result, place, _tell)


def _tell(out: "Console", result: "Result") -> None:
    """What each head of the last token looks at."""
    out.print(f"{result.summary['run']} on {result.summary['tokens']}")
    last = result.data["pattern"].isel(query=-1).values
    out.print("What the last token's heads look at (one row a layer, one block a head, first token left):")
    for layer, heads in enumerate(last):
        out.print(
            f"  layer {layer}  " + "  ".join("".join(SHADES[min(4, int(weight * 5))] for weight in head) for head in heads), markup=False
        )
