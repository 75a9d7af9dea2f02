"""The ledger: claims of a published text, each judged against what is measured here. A claim's rule is in `rules`.

A *figure* claim is a number, a *pattern* claim the inequality behind it: the ledger tells a pattern that holds with another figure
from one that does not hold.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wallprobe.claims.ledger.measurements import OTHER, READOUT, Measurements, read_measurements
from wallprobe.claims.ledger.quantities import Quantity, Reading
from wallprobe.claims.ledger.rules import RULES, Interval
from wallprobe.errors import look_up
from wallprobe.plugins import check_part, collect, first_of_name
from wallprobe.training.audit.job import AuditJob

REPRODUCED, NOT_REPRODUCED, UNMEASURED = VERDICTS = ("reproduced", "not reproduced", "not measured")
KINDS = ("pattern", "figure")


@dataclass(frozen=True)
class Claim:
    """One published statement and what would make it true here.

    Attributes:
        id: `wall.c0.untrained_mae`; the second part is its subject.
        topic: heading it stands under.
        kind: "pattern" or "figure".
        statement: in our words.
        published: the figure as (low, high), equal for a single figure; None where the study gives a statement only.
        quantity: what is measured; None where no instrument here measures it.
        rule: kind of rule in `rules.RULES`.
        accepted: values that reproduce it.
        units: of the value.
        requires: a further quantity and the values it must have, for instance that the run has learnt its task.
        pattern: id of the pattern that a figure belongs to.
        note: what a reader must know, for instance a reading that the study leaves open.
    """

    id: str
    topic: str
    kind: str
    statement: str
    published: tuple[float, float] | None
    quantity: Quantity | None
    rule: str
    accepted: Interval
    units: str = ""
    requires: tuple[Quantity, Interval] | None = None
    pattern: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.rule not in RULES:
            raise ValueError(f"claim {self.id}: kind '{self.kind}' or rule '{self.rule}' is unknown")


@dataclass(frozen=True)
class Area:
    """The claims of one study and what it takes to measure them.

    Attributes:
        name: as typed after `wallprobe claims`.
        title: what it is of.
        claims: every claim.
        conditions: what `wallprobe reproduce` trains.
        axes: what `--axes` trains besides.
        pairs: (donor, receiver) of the interchanges.
        instruments: what is measured on which runs: instrument -> conditions, "*" for all.
        readouts: (donor, receiver) of the readouts by depth, each within a seed and from one seed to the next.
        preset: recipe to judge by unless told otherwise.
        read: from (preset, root, bundled=...) the measurements to judge on; root is the run store, or the result store.
        from_results: whether root is the result store, for an area that no run enters.
        audits: seeds -> the audits of training methods that `wallprobe reproduce` makes instead; None for an area of runs.
        pack: puts the measurements of a run store into the package; None for those of runs.
    """

    name: str
    title: str
    claims: tuple[Claim, ...]
    conditions: tuple[str, ...]
    axes: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    instruments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    readouts: tuple[tuple[str, str], ...] = ()
    preset: str = "small"
    read: Callable[..., Measurements] = read_measurements
    from_results: bool = False
    audits: Callable[[Sequence[int]], Sequence[AuditJob]] | None = None
    pack: Callable[[Path], list[Path]] | None = None

    def __post_init__(self) -> None:
        ids = [claim.id for claim in self.claims]
        unknown = [claim.id for claim in self.claims if claim.pattern is not None and claim.pattern not in ids]
        if len(set(ids)) != len(ids) or unknown:
            raise ValueError(f"area {self.name}: claim ids repeat, or patterns of {unknown} are unknown")


@dataclass(frozen=True)
class Verdict:
    """A claim, judged.

    Attributes:
        claim: the claim.
        verdict: one of `VERDICTS`.
        measured: mean over the seeds, NaN if not measured.
        low, high: 95 % interval, NaN where there is none.
        interval: what the interval is: "t, 3 seeds", "bootstrap, seed 42" or "".
        seeds: seeds it was measured on.
        settled: whether the whole interval says the same as the mean; None without an interval.
        note: why it is not measured, or what else to know.
    """

    claim: Claim
    verdict: str
    measured: float = math.nan
    low: float = math.nan
    high: float = math.nan
    interval: str = ""
    seeds: tuple[int, ...] = ()
    settled: bool | None = None
    note: str = ""


def areas() -> Mapping[str, Area]:
    """Every registered area by name (entry points `wallprobe.claims`, each a function that makes an `Area`)."""
    return first_of_name(collect("wallprobe.claims", lambda make: [check_part(make(), Area)]))


def get_area(name: str) -> Area:
    """The area of that name.

    Raises:
        UnknownNameError: if there is none; the message lists those there are.
    """
    return look_up("claims", name, dict(sorted(areas().items())))


def judge(claim: Claim, measurements: Measurements) -> Verdict:
    """Measure a claim on every seed that has what it needs, and hold the mean to its accepted values."""
    if claim.quantity is None:
        return Verdict(claim, UNMEASURED, note=claim.note or "no instrument here measures it")
    readings = _readings(claim.quantity, measurements)
    defined = {seed: reading for seed, reading in readings.items() if math.isfinite(reading.value)}
    if not defined:
        why = "not defined in these runs" if readings else _missing(claim.quantity, measurements)
        return Verdict(claim, UNMEASURED, note=why)
    value, low, high, interval = _estimate(defined, claim.quantity.over_seeds)
    if claim.rule == "seeds":  # a count of yes and no, of which Student's interval means nothing
        low, high, interval = math.nan, math.nan, ""
    failed = _unmet(claim, measurements)
    holds = value in claim.accepted and not failed
    bounded = math.isfinite(low) and math.isfinite(high)
    if bounded and measurements.basis:
        interval = "bootstrap over prompts"
    inside = low in claim.accepted and high in claim.accepted
    outside = high < claim.accepted.low or low > claim.accepted.high
    settled = (inside or outside or bool(failed)) if bounded else None
    lost = [seed for seed in readings if seed not in defined]
    undefined = f"not defined for seed {', '.join(map(str, lost))}" if lost else ""
    note = _sentences(failed, undefined, claim.note)
    return Verdict(claim, REPRODUCED if holds else NOT_REPRODUCED, value, low, high, interval, tuple(defined), settled, note)


def judge_all(area: Area, measurements: Measurements) -> tuple[Verdict, ...]:
    """Every claim of an area, in its order."""
    return tuple(judge(claim, measurements) for claim in area.claims)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % Student interval of the mean of at least two values: mean +- t(n-1) s / sqrt(n)."""
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    middle = statistics.fmean(values)
    return middle - half, middle + half


def _readings(quantity: Quantity, measurements: Measurements) -> dict[int, Reading]:
    found = {seed: quantity.read(measurements.lookup(seed)) for seed in measurements.seeds}
    return {seed: reading for seed, reading in found.items() if reading is not None}


def _estimate(readings: Mapping[int, Reading], over_seeds: bool) -> tuple[float, float, float, str]:
    """Mean, interval and what the interval is."""
    seeds = list(readings)
    if over_seeds and len(seeds) > 1:
        values = [reading.value for reading in readings.values()]
        return statistics.fmean(values), *t_interval(values), f"t, {len(seeds)} seeds"
    first = readings[seeds[0]]
    bounded = math.isfinite(first.low) and math.isfinite(first.high)
    return first.value, first.low, first.high, f"bootstrap, seed {seeds[0]}" if bounded else ""


def _unmet(claim: Claim, measurements: Measurements) -> str:
    """What a claim requires besides and does not get, in words."""
    if claim.requires is None:
        return ""
    quantity, accepted = claim.requires
    wrong = {seed: reading.value for seed, reading in _readings(quantity, measurements).items() if reading.value not in accepted}
    shown = ", ".join(f"{value:.3g}" if measurements.basis else f"{value:.3g} at seed {seed}" for seed, value in wrong.items())
    bound = f"at most {accepted.high:g}" if math.isfinite(accepted.high) else f"at least {accepted.low:g}"
    return f"needs {quantity.how} {bound}, has {shown}" if wrong else ""


def _missing(quantity: Quantity, measurements: Measurements) -> str:
    """Which measurements no seed has, or has together."""
    absent = []
    for condition, instrument in quantity.needs:
        if not any(measurements.lookup(seed)(condition, instrument) for seed in measurements.seeds):
            trained = any(name == condition for name, _ in measurements.sources)
            told = instrument.replace(OTHER, " of another seed").replace(READOUT, "readout into ")
            unknown = f"no measurement of {condition}" if measurements.basis else f"no run {condition}"
            absent.append(f"no {told} of {condition}" if trained else unknown)
    return ", ".join(dict.fromkeys(absent)) or "no seed has all the runs it compares"


def _sentences(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def differing(verdicts: Iterable[Verdict]) -> list[tuple[Verdict, Verdict]]:
    """Figures that differ while the pattern they belong to holds, as (figure, pattern)."""
    by_id = {verdict.claim.id: verdict for verdict in verdicts}
    pairs = [(verdict, by_id[verdict.claim.pattern]) for verdict in by_id.values() if verdict.claim.pattern in by_id]
    return [(figure, pattern) for figure, pattern in pairs if (figure.verdict, pattern.verdict) == (NOT_REPRODUCED, REPRODUCED)]


def summary(area: Area, measurements: Measurements, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The flat summary of a ledger."""

    def count(verdict: str, kind: str | None = None) -> int:
        return sum(item.verdict == verdict and kind in (None, item.claim.kind) for item in verdicts)

    found: dict[str, Any] = {
        "area": area.name,
        "total": len(verdicts),
        "reproduced": count(REPRODUCED),
        "not_reproduced": count(NOT_REPRODUCED),
        "unmeasured": count(UNMEASURED),
        "preset": measurements.preset,
        "seeds": len(measurements.seeds),
        "runs": len(measurements.sources),
    }
    for kind in KINDS:
        for name, verdict in (("reproduced", REPRODUCED), ("not_reproduced", NOT_REPRODUCED), ("unmeasured", UNMEASURED)):
            found[f"{kind}_{name}"] = count(verdict, kind)
    found["figures_off_pattern_held"] = len(differing(verdicts))
    found["unsettled"] = sum(item.settled is False for item in verdicts)
    return found | {"finding": _finding(found, measurements.basis or f"At preset {measurements.preset}")}


def _finding(found: Mapping[str, Any], basis: str) -> str:
    """One plain sentence; what did not reproduce comes first where it is the larger part."""
    measured = found["total"] - found["unmeasured"]
    if not measured:
        return f"None of the {found['total']} claims is measured {basis[:1].lower()}{basis[1:]}."
    patterns, figures = (found[f"{kind}_reproduced"] for kind in KINDS)
    out_of = {kind: found[f"{kind}_reproduced"] + found[f"{kind}_not_reproduced"] for kind in KINDS}
    left = f"; {found['unmeasured']} of {found['total']} claims are not measured" if found["unmeasured"] else ""
    held = found["figures_off_pattern_held"]
    beside = f" ({held} of the others with their pattern)" if held else ""
    return (
        f"{basis}, {patterns} of {out_of['pattern']} measured patterns hold and {figures} of {out_of['figure']} "
        f"measured figures agree{beside}{left}."
    )
