"""The page of a Run: how its loss fell, its evaluation, and token by token what its Results show. Reads records, loads no weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wallprobe.errors import StoreError
from wallprobe.gallery import cards, charts, pages
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table
from wallprobe.gallery.pages import Part
from wallprobe.store.results import Result, load_result
from wallprobe.store.runs import EVALUATION, Run

EXAMPLES, CELLS = 8, 400_000  # attention Results shown on a run's page, and cells of all their patterns together
POINTS = 400  # of a curve; more than a screen has pixels for is thinned


@dataclass(frozen=True)
class About:
    """A stored Result about a run: its card and where it lies."""

    card: Mapping[str, Any]
    folder: Path


def page(run: Run, about: Sequence[About], makers: Mapping[str, Any], stem: str) -> tuple[str, cards.Card]:
    """The page of a run and its card.

    Args:
        run: a finished run.
        about: the stored Results that name it.
        makers: kind -> exhibit maker.
        stem: name of the page's file.
    """
    evaluated = _evaluation(run)
    curve = training_curve(run, evaluated)
    parts = [Part((curve,), "Training", told=_recipe(run))] if curve else []
    title = f"{run.name}: {_condition(run)}"
    if evaluated is not None and "eval" in makers:
        shown: Exhibit = makers["eval"](evaluated)
        title = shown.title
        command = str(evaluated.manifest.get("command", ""))
        parts.append(Part(shown.sections, "Evaluation", "Held against the exact Bayesian answer.", command))
    parts.append(_tokens(run, about, makers))
    manifest = {key: value for key, value in run.manifest.items() if key != "log"}
    html = pages.run_page(title=title, name=str(run.name), told=_condition(run), parts=parts, links=_links(about), manifest=manifest)
    return html, _card(run, title, stem, evaluated)


def _evaluation(run: Run) -> Result | None:
    try:
        return load_result(run.path / EVALUATION)
    except StoreError:
        return None


def _condition(run: Run) -> str:
    told = run.manifest.get("config", {}).get("condition", {}).get("summary")
    return str(told) if told else f"trained as {run.name.condition}"


def _recipe(run: Run) -> str:
    """Size, steps and seed, as far as the manifest tells."""
    shape, found = run.manifest.get("shape", {}), run.manifest
    said = []
    if {"n_layers", "d_model", "n_heads"} <= set(shape):
        said.append(f"{shape['n_layers']} layers, width {shape['d_model']}, {shape['n_heads']} heads")
    if isinstance(found.get("parameters"), int):
        said.append(f"{found['parameters']:,} parameters")
    if isinstance(found.get("steps"), int):
        said.append(f"{found['steps']:,} steps")
    said.append(f"seed {run.name.seed}")
    if isinstance(found.get("wall_time_s"), (int, float)):
        said.append(f"{found['wall_time_s']:,.0f} s on {found.get('device', 'a device')}")
    return f"{', '.join(said)}."


def training_curve(run: Run, evaluated: Result | None) -> Figure | None:
    """Losses over steps beside the exact answer's entropy, and the wall where it was followed; None without a log."""
    log = [entry for entry in run.manifest.get("log", []) if isinstance(entry, Mapping) and isinstance(entry.get("step"), int)]
    if not log:
        return None
    thin = log[:: max(1, math.ceil(len(log) / POINTS))]
    thin = thin if thin[-1] is log[-1] else [*thin, log[-1]]
    floor = _exact_nats(run, evaluated)
    panels = [_loss_panel(thin, floor)]
    losses = [loss for entry in log if (loss := _number(entry.get("cross_entropy"))) is not None]
    late = losses[-max(1, len(losses) // 10) :]
    last = float(np.mean(late)) if late else None
    fall = f"The supervised loss went from {losses[0]:.2f} to {last:.3f} nats in {log[-1]['step']:,} steps" if losses else ""
    title = fall or f"Training of {run.name}"
    if fall and floor is not None and last is not None:
        title += f"; the exact answer's is {floor:.3f}"
    if any(_number(entry.get("signal")) for entry in log):
        panels.append(_line_panel(thin, ("signal",), ("signal",), "signal's loss", "loss of the training signal"))
    if any("untrained_mae" in entry for entry in log):
        names, labels = ("trained_mae", "untrained_mae"), ("supervised positions", "unsupervised positions")
        panels.append(
            _line_panel(
                [entry for entry in thin if "untrained_mae" in entry], names, labels, "entropy error (bits)", "the wall over training"
            )
        )
    caption = f"Mean over the batch of each step, which scatters by batch; no interval. The title's last is the mean of {len(late)}."
    if floor is not None:
        caption += " Dotted: mean entropy of the exact answer at the supervised positions, below which no model comes on average."
    return Figure(title, (Frame(tuple(panels)),), f"Line over training steps. {title}.", caption, height=300)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _exact_nats(run: Run, evaluated: Result | None) -> float | None:
    horizon = run.manifest.get("horizon")
    if evaluated is None or not isinstance(horizon, int) or not charts.has(evaluated, "entropy_exact"):
        return None
    data = evaluated.data["entropy_exact"]
    inside = data.values[np.asarray(evaluated.data["position"].values) <= horizon]
    return float(inside.mean() * math.log(2)) if inside.size and evaluated.data["entropy_exact"].attrs.get("units") == "bits" else None


def _trace(log: Sequence[Mapping[str, Any]], name: str, label: str, color: str, dash: str) -> charts.Spec:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": charts.text(label),
        "x": [entry["step"] for entry in log],
        "y": [_number(entry.get(name)) for entry in log],
        "line": {"color": color, "width": 1.8, "dash": dash},
    }


def _loss_panel(log: Sequence[Mapping[str, Any]], floor: float | None) -> Panel:
    layout: charts.Spec = {
        "xaxis": charts.axis("step", showgrid=False),
        "yaxis": charts.axis("cross-entropy", "nats"),
        "hovermode": "x unified",
    }
    if floor is not None:
        layout["shapes"] = [charts.rule_line(floor, "exact answer")]
    return Panel(PLOTLY, {"data": [_trace(log, "cross_entropy", "supervised loss", "@series-1", "solid")], "layout": layout})


def _line_panel(log: Sequence[Mapping[str, Any]], names: Sequence[str], labels: Sequence[str], axis: str, heading: str) -> Panel:
    looks = (("@series-2", "solid"), ("@series-1", "dash"))
    traces = [_trace(log, name, label, *look) for name, label, look in zip(names, labels, looks, strict=False)]
    seen = [value for trace in traces for value in trace["y"] if value]
    scale = charts.scale(seen)
    layout = {
        "xaxis": charts.axis("step", showgrid=False),
        "yaxis": charts.axis(axis, exponentformat="power", **scale),
        "showlegend": len(traces) > 1,
    }
    return Panel(PLOTLY, {"data": traces, "layout": layout}, heading)


def _tokens(run: Run, about: Sequence[About], makers: Mapping[str, Any]) -> Part:
    """Attention and token views of the stored examples, the reader stepping through; the command that makes one where there is none."""
    heading, command = "Token by token", f"wallprobe attention {run.name}"
    found: list[tuple[str, Exhibit]] = []
    room, cut = CELLS, 0
    for item in _newest(about, "attention"):
        result = _sound(item.folder)
        if result is None or "attention" not in makers or "pattern" not in result.data:
            continue
        if len(found) == EXAMPLES or result.data["pattern"].size > room:
            cut += 1
            continue
        room -= result.data["pattern"].size
        found.append((_example_name(result, len(found)), makers["attention"](result)))
    if not found:
        return Part((), heading, f"No attention pattern of {run.name} is stored. This makes one:", command)
    sections: list[Figure | Table] = []
    token_views = [(label, _first(made, "ColoredTokens")) for label, made in found]
    heads = [(label, _first(made, "AttentionHeads")) for label, made in found]
    count = f"{len(found)} example{'s' if len(found) > 1 else ''}"
    for views, title in ((token_views, f"How expected each token was, on {count}"), (heads, f"Where each head looks, on {count}")):
        merged = _merged(views, title)
        if merged:
            sections.append(merged)
    told = f"{count} from the stored Results of kind attention."
    told += f" {cut} more would not fit on this page; see below." if cut else ""
    return Part(tuple(sections), heading, told)


def _example_name(result: Result, place: int) -> str:
    kind = result.data.attrs.get("example") or result.manifest.get("subject") or "sequence"
    return f"example {place + 1} ({kind})"


def _first(made: Exhibit, element: str) -> Figure | None:
    for section in made.sections:
        if isinstance(section, Figure) and any(panel.element == element for frame in section.frames for panel in frame.panels):
            return section
    return None


def _merged(views: Sequence[tuple[str, Figure | None]], title: str) -> Figure | None:
    """One figure of the frames of several, so that a single stepper leads through all examples."""
    chosen = [(label, figure) for label, figure in views if figure is not None]
    if not chosen:
        return None
    frames = tuple(
        replace(frame, label=", ".join(part for part in (label, frame.label) if part))
        for label, figure in chosen
        for frame in figure.frames
    )
    first = chosen[0][1]
    alt = f"{title}. {' '.join(f'{label}: {figure.alt}' for label, figure in chosen)}"
    return replace(first, title=title, frames=frames, alt=alt, stepper="example and layer" if len(first.frames) > 1 else "example")


def _newest(about: Sequence[About], kind: str) -> list[About]:
    chosen = sorted((item for item in about if item.card["kind"] == kind), key=lambda item: str(item.card["stem"]))
    return sorted(chosen, key=lambda item: str(item.card["created"]), reverse=True)


def _sound(folder: Path) -> Result | None:
    try:
        return load_result(folder)
    except StoreError:
        return None


def _links(about: Sequence[About]) -> list[dict[str, Any]]:
    return cards.grouped([dict(item.card) for item in about])


def _card(run: Run, title: str, stem: str, evaluated: Result | None) -> cards.Card:
    losses = [_number(entry.get("cross_entropy")) for entry in run.manifest.get("log", []) if isinstance(entry, Mapping)]
    seen = [value for value in losses if value is not None]
    low = min(seen, default=0.0)
    drawn = Glance("line", (tuple(value - low for value in seen[:: max(1, len(seen) // 40)]),)) if len(seen) > 1 else None
    return {
        "kind": "run",
        "title": title,
        "subject": str(run.name),
        "created": str(run.manifest.get("created", "")),
        "command": str(run.manifest.get("command", "")),
        "stem": stem,
        "href": f"runs/{stem}.html",
        "glance": cards.thumbnail(drawn),
        "facets": {"names": {"run": [str(run.name)]}, "seeds": [run.name.seed], "verdicts": []},
        "comparable": False,
    }


__all__ = ["About", "page", "training_curve"]
