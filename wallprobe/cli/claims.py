"""`wallprobe claims`: the ledger of a seed, from what is stored."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wallprobe.claims.ledger.claim import Area, Verdict
    from wallprobe.claims.ledger.measurements import Measurements
    from wallprobe.store.results import Result

COLORS = {"reproduced": "green", "not reproduced": "red", "not measured": "dim"}


def claims(
    area: Annotated[str, typer.Argument(help="Whose claims: wall, gains, audit or equilibrium.", metavar="AREA")],
    preset: Annotated[str | None, typer.Option(help="Recipe of the runs to judge by.", show_default="the area's")] = None,
    verdict: Annotated[
        str | None, typer.Option(help="Show only these: reproduced, 'not reproduced' or 'not measured'.", show_default="all")
    ] = None,
    markdown: options.Markdown = False,
    *,
    stores: options.Stores,
) -> None:
    """Hold published claims to what was measured: local runs, and the bundled ones they do not shadow. Trains nothing."""
    from wallprobe.claims.ledger.claim import get_area, judge_all

    wanted = parse_verdict(verdict)
    chosen = get_area(area)
    measurements = chosen.read(preset or chosen.preset, stores.results if chosen.from_results else stores.runs)
    verdicts = judge_all(chosen, measurements)
    show(chosen, measurements, verdicts, stores, wanted=wanted, markdown=markdown)


def parse_verdict(text: str | None) -> str | None:
    """A verdict as typed.

    Raises:
        ConfigError: if it is none.
    """
    from wallprobe.claims.ledger.claim import VERDICTS
    from wallprobe.errors import ConfigError

    if text is not None and text not in VERDICTS:
        raise ConfigError(f"--verdict '{text}' is none of {', '.join(repr(known) for known in VERDICTS)}")
    return text


def show(
    area: "Area",
    measurements: "Measurements",
    verdicts: "Sequence[Verdict]",
    stores: options.Stores,
    *,
    wanted: str | None = None,
    markdown: bool,
) -> None:
    """Store the ledger and print it: as JSON, as Markdown, or as tables with what did not reproduce in words."""
    from wallprobe.claims.ledger import record

    result = record.make_result(area, measurements, verdicts)
    stored = result.save(stores.results)
    common.tell_damaged(measurements.lost())
    shown = [item for item in verdicts if wanted in (None, item.verdict)]
    if stores.json:
        told = result.to_json()
        kept = {item.claim.id for item in shown}
        common.print_json(told | {"values": [row for row in told["values"] if row["id"] in kept]})
        return
    if markdown:
        typer.echo(record.markdown(area, measurements, verdicts, shown), nl=False)
        return
    _print(area, measurements, verdicts, shown, result)
    common.out().print(f"[dim]stored in {stored}; see it: wallprobe gallery --open[/dim]", soft_wrap=True)


def _print(area: "Area", measurements: "Measurements", verdicts: "Sequence[Verdict]", shown: "Sequence[Verdict]", result: "Result") -> None:
    from rich.markup import escape

    from wallprobe.claims.ledger import record

    out = common.out()
    tabled = [item for item in shown if item.verdict != "not measured"]
    for topic in dict.fromkeys(item.claim.topic for item in tabled):
        out.print(_table(area, topic, [item for item in tabled if item.claim.topic == topic]))
    for reason, items in record.unmeasured(shown).items():
        names = ", ".join(record.short_id(area, item) for item in items)
        out.print(f"[dim]not measured, {escape(reason)}: {escape(names)}[/dim]", soft_wrap=True)
    out.print(f"[bold]{escape(result.summary['finding'])}[/bold]", soft_wrap=True)
    for line in record.in_words(area, verdicts):
        out.print(escape(line), soft_wrap=True)
    for line in measurements.left_out:
        out.print(f"[dim]left out: {escape(line)}[/dim]", soft_wrap=True)


def _table(area: "Area", topic: str, items: "Sequence[Verdict]") -> Any:
    """One topic: the claim and its id, the published figure, ours with its interval, the verdict."""
    from rich.markup import escape

    from wallprobe.claims.ledger import record

    table = empty(topic)
    table.add_column("claim", ratio=1)
    table.add_column("published", justify="right", min_width=9)
    table.add_column("measured", justify="right", min_width=8)
    table.add_column("verdict", min_width=8)
    for item in items:
        color = COLORS[item.verdict]
        bounds = record.interval_text(item)
        measured = (
            "" if item.verdict == "not measured" else record.figure_text(item.measured) + (f"\n[dim]{bounds}[/dim]" if bounds else "")
        )
        note = f"\n[dim]{escape(item.note)}[/dim]" if item.note else ""
        claim = f"{escape(item.claim.statement)}\n[dim]{record.short_id(area, item)} ({item.claim.kind})[/dim]{note}"
        doubt = "\n[dim]unsettled[/dim]" if item.settled is False else ""
        table.add_row(claim, record.published_text(item).replace(" to ", "\nto "), measured, f"[{color}]{item.verdict}[/{color}]{doubt}")
    return table
