"""A judged ledger as a Result of kind "claims", and as Markdown."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from wallprobe.claims.ledger.claim import NOT_REPRODUCED, UNMEASURED, Area, Verdict, differing, summary
from wallprobe.claims.ledger.measurements import Measurements
from wallprobe.claims.ledger.rules import RULES, Interval
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

TEXTS: dict[str, tuple[str, Callable[[Verdict], str]]] = {
    "topic": ("heading it stands under", lambda item: item.claim.topic),
    "kind": ("pattern (an inequality) or figure (a number)", lambda item: item.claim.kind),
    "statement": ("the claim in our words", lambda item: item.claim.statement),
    "seed_says": ("the published figure or range, as text", lambda item: published_text(item)),
    "ci": ("95 % interval of the measured value, as text", lambda item: interval_text(item)),
    "ci_kind": ("what the interval is: over seeds (t) or over sequences (bootstrap)", lambda item: item.interval),
    "accepted": ("values that reproduce it, as text", lambda item: accepted_text(item.claim.accepted)),
    "verdict": ("reproduced, not reproduced or not measured", lambda item: item.verdict),
    "settled": ("does the whole interval say the same? yes, no, or empty without one", lambda item: settled_text(item)),
    "rule": ("kind of quantity whose rule applies", lambda item: item.claim.rule),
    "value_units": ("units of the value", lambda item: item.claim.units),
    "seeds": ("seeds it was measured on", lambda item: " ".join(map(str, item.seeds))),
    "how": ("what is measured", lambda item: item.claim.quantity.how if item.claim.quantity else ""),
    "pattern": ("id of the pattern that a figure belongs to", lambda item: item.claim.pattern or ""),
    "note": ("why it is not measured, or what else to know", lambda item: item.note),
}
NUMBERS: dict[str, tuple[str, Callable[[Verdict], float]]] = {
    "seed_value": ("the published figure; of a range, its middle", lambda item: _middle(item)),
    "seed_low": ("lower end of the published range", lambda item: item.claim.published[0] if item.claim.published else math.nan),
    "seed_high": ("upper end of the published range", lambda item: item.claim.published[1] if item.claim.published else math.nan),
    "measured": ("mean over the seeds", lambda item: item.measured),
    "measured_low": ("lower bound of the 95 % interval", lambda item: item.low),
    "measured_high": ("upper bound of the 95 % interval", lambda item: item.high),
    "accepted_low": ("least value that reproduces it", lambda item: item.claim.accepted.low),
    "accepted_high": ("greatest value that reproduces it", lambda item: item.claim.accepted.high),
}


def make_result(area: Area, measurements: Measurements, verdicts: Sequence[Verdict]) -> Result:
    """The ledger as a Result, table over claims."""
    watch = Stopwatch()
    along = ("id",)
    variables: dict[str, tuple[tuple[str, ...], Any, str, str]] = {}
    for name, (what, text) in TEXTS.items():
        variables[name] = (along, [text(item) for item in verdicts], "", what)
    variables["preset"] = (along, [measurements.preset] * len(verdicts), "", "recipe of the runs")
    for name, (what, value) in NUMBERS.items():
        variables[name] = (along, [value(item) for item in verdicts], "see value_units", what)
    data = dataset({"id": [item.claim.id for item in verdicts]}, variables, area=area.name, title=area.title, preset=measurements.preset)
    runs = {str(source.name): source for source in measurements.sources.values()}
    manifest = provenance(
        config={"area": area.name, "preset": measurements.preset},
        device="none",
        dtype="float64",
        watch=watch,
        subject=f"{area.name} {measurements.preset}",
        weight_hash={name: source.weight_hash for name, source in runs.items()},
        weight_processing="none",
        runs_from={name: source.where for name, source in runs.items()},
        left_out=[*measurements.left_out, *(f"{name}: {why}" for name, why in measurements.lost())],
        rules=used_rules(area),
    )
    return Result("claims", data, along, summary(area, measurements, verdicts), manifest)


def used_rules(area: Area) -> dict[str, str]:
    """The rules that some claim of an area follows."""
    used = {claim.rule for claim in area.claims}
    return {name: rule for name, rule in RULES.items() if name in used}


def figure_text(value: float) -> str:
    """A figure for people: three significant digits, no exponent above 1e-4."""
    if not math.isfinite(value):
        return "–"
    if value and abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def published_text(item: Verdict) -> str:
    """The published figure or range; empty where the study gives a statement only."""
    if item.claim.published is None:
        return ""
    low, high = (f"{value:.2g}" if abs(value) < 1e-3 else f"{value:.4g}" for value in item.claim.published)
    return low if low == high else f"{low} to {high}"


def interval_text(item: Verdict) -> str:
    """The measured interval; empty where there is none."""
    return f"{figure_text(item.low)} to {figure_text(item.high)}" if math.isfinite(item.low) and math.isfinite(item.high) else ""


def accepted_text(accepted: Interval) -> str:
    """The accepted values in words."""
    if math.isinf(accepted.low):
        return f"{'below' if accepted.open else 'at most'} {figure_text(accepted.high)}"
    if math.isinf(accepted.high):
        return f"{'above' if accepted.open else 'at least'} {figure_text(accepted.low)}"
    return f"{figure_text(accepted.low)} to {figure_text(accepted.high)}"


def settled_text(item: Verdict) -> str:
    """Whether the interval lies on one side of the rule."""
    return "" if item.settled is None else "yes" if item.settled else "no"


def _middle(item: Verdict) -> float:
    return sum(item.claim.published) / 2 if item.claim.published else math.nan


def in_words(area: Area, verdicts: Sequence[Verdict]) -> list[str]:
    """What did not reproduce, said plainly: patterns that failed, figures that differ with their pattern held, and the other figures."""
    failed = [item for item in verdicts if item.verdict == NOT_REPRODUCED]
    kept = {figure.claim.id for figure, _ in differing(verdicts)}
    groups = (
        ("Patterns that did not hold here", [item for item in failed if item.claim.kind == "pattern"]),
        ("Figures that differ while their pattern holds", [item for item in failed if item.claim.id in kept]),
        ("Other figures that differ", [item for item in failed if item.claim.kind == "figure" and item.claim.id not in kept]),
    )
    lines = []
    for heading, items in groups:
        said = "; ".join(f"{short_id(area, item)} {_against(item)}" for item in items)
        lines.append(f"{heading}: {said or 'none'}.")
    return lines


def unmeasured(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """The claims that were not measured, by the reason, the commonest first."""
    reasons: dict[str, list[Verdict]] = {}
    for item in verdicts:
        if item.verdict == UNMEASURED:
            reasons.setdefault(item.note, []).append(item)
    return dict(sorted(reasons.items(), key=lambda pair: -len(pair[1])))


def short_id(area: Area, item: Verdict) -> str:
    """The id without the area."""
    return item.claim.id.removeprefix(f"{area.name}.")


def _against(item: Verdict) -> str:
    wanted = f"published {published_text(item)}" if item.claim.kind == "figure" else f"claimed {accepted_text(item.claim.accepted)}"
    return f"{figure_text(item.measured)} ({wanted})"


def markdown(area: Area, measurements: Measurements, verdicts: Sequence[Verdict], shown: Sequence[Verdict]) -> str:
    """The ledger as a Markdown page.

    Args:
        area: whose claims.
        measurements: what they were judged on.
        verdicts: all of them.
        shown: those that get a row.
    """
    found = summary(area, measurements, verdicts)
    lines = [f"# The ledger: {area.title[:1].lower()}{area.title[1:]}", "", f"{found['finding']}", ""]
    lines += ["| | reproduced | not reproduced | not measured |", "|---|---|---|---|"]
    for kind in ("pattern", "figure"):
        lines.append(
            "| "
            + " | ".join([f"{kind}s", *(str(found[f"{kind}_{part}"]) for part in ("reproduced", "not_reproduced", "unmeasured"))])
            + " |"
        )
    lines += ["", "## What did not reproduce", ""]
    lines += [f"- {line}" for line in in_words(area, verdicts)]
    for topic in dict.fromkeys(item.claim.topic for item in shown):
        lines += ["", f"## {topic}", "", "| claim | published | measured (95 % interval) | reproduced if | verdict |"]
        lines += ["|---|---|---|---|---|", *(_row(area, item) for item in shown if item.claim.topic == topic)]
    lines += ["", "## How to read it", ""]
    lines += [f"- {line}" for line in _reading(measurements)]
    lines += [f"- Rule for {'an' if name[0] in 'aeiou' else 'a'} {name}: {rule}." for name, rule in used_rules(area).items()]
    return "\n".join(lines) + "\n"


def _row(area: Area, item: Verdict) -> str:
    bounds = f" ({interval_text(item)})" if interval_text(item) else ""
    measured = "" if item.verdict == UNMEASURED else figure_text(item.measured) + bounds
    verdict = f"**{item.verdict}**" if item.verdict == NOT_REPRODUCED else item.verdict
    doubt = ", unsettled" if item.settled is False else ""
    note = f" <br>{item.note}" if item.note else ""
    cells = (
        f"{item.claim.statement} <br>`{short_id(area, item)}`, {item.claim.kind}{note}",
        published_text(item),
        measured,
        accepted_text(item.claim.accepted),
        f"{verdict}{doubt}",
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _reading(measurements: Measurements) -> list[str]:
    """What the table is of: runs, intervals, kinds."""
    kinds = "A pattern is an inequality, a figure a number with a band: the pattern may hold where the figure differs."
    if measurements.told:
        return [*measurements.told, kinds, "Intervals are the bootstrap over prompts."]
    sources = measurements.sources.values()
    counts = {where: sum(source.where == where for source in sources) for where in ("local", "bundled")}
    per_seed = (
        ", ".join(f"{sum(seed == other for _, other in measurements.sources)} of seed {seed}" for seed in measurements.seeds) or "none"
    )
    return [
        f"Preset {measurements.preset}; {len(sources)} runs, {counts['local']} local and {counts['bundled']} bundled: {per_seed}.",
        kinds,
        "Intervals are Student's over seeds where a claim was measured on two or more, else the bootstrap over the sequences or pairs of "
        "the one run; of a comparison of two runs, the bootstrap bounds are combined and so too wide. Unsettled: the interval does not "
        "lie on one side of the rule.",
        *(f"Left out: {line}." for line in measurements.left_out),
        *(f"Left out, damaged: {' '.join(f'{name}: {why}'.split())}." for name, why in measurements.lost()),
    ]
