"""`wallprobe attention`: what each head of a run looks at."""

from typing import Annotated

import typer

from wallprobe.cli import common

SHADES = " ░▒▓█"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(attention)


def attention(
    name: Annotated[str, typer.Argument(help="Run: c0, p5@1337.", metavar="RUN")],
    example: Annotated[str, typer.Option(help="Draw a program or a noise sequence.")] = "program",
    tokens: Annotated[str | None, typer.Option(help="This sequence instead, such as 3,7,11,15.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawn sequence.")] = 0,
    device: common.Device = "auto",
    runs: common.Runs = None,
    results: common.Results = None,
    json: common.Json = False,
) -> None:
    """Attention patterns of a run on one sequence, for the gallery."""
    from wallprobe import models
    from wallprobe.hooks.interchange.single import parse_numbers_in_order
    from wallprobe.hooks.wall.attention import attention as measure
    from wallprobe.store.runs import resolve_run

    given = None if tokens is None else parse_numbers_in_order(tokens, "tokens")
    result = measure(resolve_run(name, runs), example=example, tokens=given, seed=seed, device=models.pick_device(device))
    stored = result.save(results)
    if json:
        common.print_json(result.to_json())
        return
    out, pattern = common.out(), result.data["pattern"]
    out.print(f"{result.summary['run']} on {result.summary['tokens']}")
    last = pattern.isel(query=-1).values
    out.print("What the last token's heads look at (one row a layer, one block a head, first token left):")
    for layer, heads in enumerate(last):
        out.print(
            f"  layer {layer}  " + "  ".join("".join(SHADES[min(4, int(weight * 5))] for weight in head) for head in heads), markup=False
        )
    out.print(f"\n{result.summary['finding']}", style="bold", soft_wrap=True)
    out.print(f"[dim]stored in {stored}; see it: wallprobe gallery --open[/dim]", soft_wrap=True)
