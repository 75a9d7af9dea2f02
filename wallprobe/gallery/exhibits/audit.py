"""The exhibit of kind "audit": does the alignment figure measure anything, and from which epoch on does it not?"""

import math
from typing import Any

import numpy as np
import xarray as xr

from wallprobe.findings import foremost
from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

METHODS = {
    "bp": ("@series-3", "square"),
    "frozen": ("@muted", "diamond"),
    "fa": ("@series-2", "triangle-up"),
    "dfa": ("@series-1", "circle"),
}
OTHER = ("@series-4", "cross")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
NAMES = {"resmlp": "ResMLP", "vit": "ViT-Mini", "student": "StudentNet", "bncnn": "BN-CNN", "wall": "HookedTransformer"}
FIRST = {"a": "(a)", "a_prime": "(a′)", "b": "(b)", "b_prime": "(b′)", "d": "(d)", "e": "(e)", "f": "(f)"}
VERDICTS = {"SOUND": 0, "NO_DEEP_CREDIT": 1, "INFLATED": 2, "DEGENERATE": 3}
HEROES = 6  # panels of the clamped-against-exact figure


def exhibit(result: Result) -> Exhibit:
    """Clamped against exact cosine, norms over epochs, the slope, weight growth; verdicts, first epochs, the first epochs' norms."""
    data = result.data
    if not charts.has(result, "gamma_clamped", "gamma_exact", "h_norm", "g_norm") or data["h_norm"].dims != ("run", "moment", "layer"):
        return Exhibit(headline(result, f"Audit of {result.manifest.get('subject', 'a run')}"), tables(result))
    rows = [_Run(result, place) for place in range(data.sizes["run"])]
    sections: list[Figure | Table] = [
        _main(rows),
        _cosines(rows),
        _hero(rows),
        _temporal(rows),
        _loglog(rows),
        _growth(rows),
        _firings(rows),
        *_stops(rows),
        *_exact(rows),
        _replay(rows),
    ]
    worst = max(rows, key=lambda row: (VERDICTS.get(row.record["verdict"], 0), row.name))
    shown = tuple(None if value is None else math.log10(value) + 12 for value in worst.top("g_norm"))
    note = ""
    if any(row.record["verdict"] == "DEGENERATE" for row in rows):
        note = (
            "Where a run is degenerate, the clamped cosine is set by the clamp and must not be reported. The exact one is still "
            "defined: floating point loses nothing here. By itself it is no evidence that the credit is good: see (d), (e) and (f)."
        )
    return Exhibit(headline(result, "An audit"), tuple(sections), Glance("line", (shown,)), note)


class _Run:
    """One run of the Result: its record and its series after whole epochs."""

    def __init__(self, result: Result, place: int) -> None:
        data = result.data
        self.name = str(data["run"].values[place])
        several = "run_verdict" in data
        self.record: dict[str, Any] = (
            {str(name)[4:]: _cell(array.values[place]) for name, array in data.data_vars.items() if str(name).startswith("run_")}
            if several
            else dict(result.summary)
        )
        one = data.isel(run=place)
        depth = int(self.record.get("depth") or data.sizes["layer"] - 1)
        epochs = one["epoch"].values[:, 0]
        whole = np.isfinite(epochs)
        self.data: xr.Dataset = one.isel(moment=whole, layer=slice(0, depth + 1))
        self.epochs: list[float] = epochs[whole].tolist()
        self.eps = float(data.attrs["eps"])

    @property
    def label(self) -> str:
        """Architecture, method and seed for a legend."""
        return f"{self.kind} @{int(self.record['seed'])}"

    @property
    def kind(self) -> str:
        """Architecture, method and the settings that set it apart from others: what seeds are of."""
        variant = self.record.get("variant")
        return f"{NAMES.get(self.record['arch'], self.record['arch'])} {self.record['method']}" + (f", {variant}" if variant else "")

    @property
    def look(self) -> tuple[str, str]:
        """Colour and symbol of the method."""
        return METHODS.get(self.record["method"], OTHER)

    def top(self, name: str) -> list[float | None]:
        """A quantity at h_L."""
        return self.at(-1, name)

    def at(self, layer: int, name: str) -> list[float | None]:
        """A quantity at one state."""
        return charts.values(self.data[name].isel(layer=layer))

    @property
    def telling(self) -> tuple[int, int]:
        """The state at which clamped and exact cosine have opposite signs most often, the last of several, and how often."""
        flips = np.nansum(self.data["sign_flip"].values, axis=0)
        flips[0] = 0
        layer = int(len(flips) - 1 - np.argmax(flips[::-1]))
        return layer, int(flips[layer])

    def epoch(self, epoch: int, name: str) -> float | None:
        """A quantity at h_L after so many epochs."""
        return self.top(name)[self.epochs.index(epoch)] if epoch in self.epochs else None


def _cell(value: Any) -> Any:
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def _archs(rows: list[_Run]) -> list[str]:
    return list(dict.fromkeys(row.record["arch"] for row in rows))


def _mean(values: list[float | None], geometric: bool = False) -> float | None:
    seen = [value for value in values if value is not None and math.isfinite(value)]
    if not seen:
        return None
    return math.exp(sum(math.log(max(value, 1e-300)) for value in seen) / len(seen)) if geometric else sum(seen) / len(seen)


def _groups(rows: list[_Run]) -> dict[str, list[_Run]]:
    """Runs that are seeds of one another."""
    groups: dict[str, list[_Run]] = {}
    for row in rows:
        groups.setdefault(row.kind, []).append(row)
    return groups


def _worst(group: list[_Run]) -> str:
    return str(max((row.record["verdict"] for row in group), key=lambda name: VERDICTS.get(name, 0)))


def _main(rows: list[_Run]) -> Table:
    """Norms and accuracy."""
    columns = ("run", "verdict", "seeds", "acc.", "− frozen", "|h_L|", "|g_L|")
    cells = []
    for kind, group in _groups(rows).items():
        means = [_mean([row.record[key] for row in group]) for key in ("accuracy", "accuracy_minus_frozen")]
        norms = [_mean([row.record[key] for row in group], geometric=True) for key in ("h_norm", "g_norm")]
        cells.append([kind, _worst(group).replace("_", " ").lower(), len(group), *means, *norms])
    caption = "Accuracy (acc.) and norms at the last epoch, means over seeds, of norms geometric ones. A verdict is the worst over seeds."
    return Table("The audit", columns, cells, caption)


def _cosines(rows: list[_Run]) -> Table:
    """Cosines and the product of the norms."""
    columns = ("run", "Γ clamped", "Γ exact", "Γ deep clamped", "Γ deep exact", "< eps", "× |h||g|")
    keys = ("gamma_clamped", "gamma_exact", "gamma_deep_clamped", "gamma_deep_exact", "below_eps")
    cells = []
    for kind, group in _groups(rows).items():
        means = [_mean([row.record.get(key) for row in group]) for key in keys]
        cells.append([kind, *means, _mean([row.record["elasticity_ratio"] for row in group], geometric=True)])
    caption = (
        "Γ: cosine of credit and gradient, at h_L and (deep) over layers 1..L, clamped as usual and exact; not to be reported clamped "
        "where a run is degenerate. < eps: share of references shorter than the clamp. × |h||g|: the norms' product over its initial value."
    )
    return Table("The cosine", columns, cells, caption)


def _stops(rows: list[_Run]) -> list[Table]:
    """Where an early stop ends a run, or would have; no table if nowhere."""
    cells = []
    for row in rows:
        stop = row.record.get("stop_epoch")
        if stop is not None:
            cells.append([row.label, int(stop), row.record["accuracy_at_stop"], row.record["accuracy"], int(row.record["epochs"])])
    caption = "What --stop-on degenerate does, or would have done: the same seed's training is the same up to there."
    columns = ("run", "stopped at epoch", "acc. then", "acc. at the end", "last epoch")
    return [Table("Early stop", columns, cells, caption)] if cells else []


def _exact(rows: list[_Run]) -> list[Table]:
    """Of the wall's task, the distance from the exact answer; no table of others."""
    cells = []
    for row in rows:
        near, far = row.record.get("mae_supervised"), row.record.get("mae_beyond")
        if near is not None and far is not None:
            cells.append([row.label, near, far, far / near, row.record["accuracy"]])
    caption = (
        "Mean distance of the model's entropy from the exact predictive's in bits, over supervised positions and at the one after them."
    )
    columns = ("run", "supervised", "one later", "ratio", "next-token acc.")
    return [Table("Distance from the exact answer", columns, cells, caption)] if cells else []


def _line(row: _Run, y: list[float | None], color: str, dash: str, symbol: str, label: str) -> Spec:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": charts.text(label),
        "x": row.epochs,
        "y": y,
        "line": {"color": color, "width": 2, "dash": dash},
        "marker": {"color": color, "size": 5, "symbol": symbol},
    }


def _hero(rows: list[_Run]) -> Figure:
    """Clamped against exact cosine, the epochs below the clamp shaded; opened at a sign flip where there is one."""
    chosen = sorted(rows, key=lambda row: (-row.telling[1], -VERDICTS.get(row.record["verdict"], 0)))[:HEROES]
    frames = tuple(Frame((Panel(PLOTLY, _pair(row)),), row.label) for row in chosen)
    layer, flips = chosen[0].telling
    title = (
        f"{chosen[0].label}: at h_{layer} the usual cosine has the wrong sign at {flips} of {len(chosen[0].epochs)} moments"
        if flips
        else f"{chosen[0].label}: the cosine as usually computed, and without its clamp"
    )
    caption = (
        "Mean over samples, at the state where the signs differ most often, else at h_L. Shaded: a share of the samples' references is "
        "shorter than eps, deeper where it is more. Grey band: 95 % of fresh random feedback, where measured."
    )
    return Figure(title, frames, f"Two lines of cosine over epochs. {title}.", caption, stepper="run", height=380)


def _pair(row: _Run) -> Spec:
    layer = row.telling[0]
    traces: list[Spec] = []
    low, high = row.at(layer, "null_low"), row.at(layer, "null_high")
    known = [place for place, value in enumerate(low) if value is not None]
    if known:
        edge = {"type": "scatter", "mode": "lines", "x": [row.epochs[place] for place in known], "line": {"width": 0}, "hoverinfo": "skip"}
        traces.append(edge | {"y": [low[place] for place in known], "showlegend": False})
        traces.append(edge | {"y": [high[place] for place in known], "fill": "tonexty", "fillcolor": "@line", "name": "random feedback"})
    traces.append(_line(row, row.at(layer, "gamma_exact"), "@series-3", "solid", "square", "exact"))
    traces.append(_line(row, row.at(layer, "gamma_clamped"), "@series-1", "dash", "circle", "clamped, as usually reported"))
    shapes = []
    below = row.at(layer, "below_eps")
    for place, share in enumerate(below):
        if share:
            left = row.epochs[place - 1] if place else row.epochs[place]
            ends = {"x0": (left + row.epochs[place]) / 2, "x1": _middle(row.epochs, place)}
            box = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 0}, "layer": "below", "fillcolor": "@shade"}
            shapes.append(box | ends | {"opacity": 0.3 + 0.7 * share})
    zero = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0, "line": {"color": "@muted", "width": 1}}
    layout = {
        "xaxis": charts.axis("epoch"),
        "yaxis": charts.axis(f"Γ at h_{layer}", "cosine"),
        "shapes": [*shapes, zero],
        "hovermode": "x unified",
    }
    return {"data": traces, "layout": layout}


def _middle(epochs: list[float], place: int) -> float:
    right = epochs[place + 1] if place + 1 < len(epochs) else epochs[place]
    return (epochs[place] + right) / 2


def _lines(rows: list[_Run], name: str) -> list[Spec]:
    """A line a run; the legend names each method once."""
    traces, named = [], set[str]()
    seeds = sorted({row.record["seed"] for row in rows})
    for row in rows:
        color, symbol = row.look
        method = str(row.record["method"])
        drawn = _line(row, row.top(name), color, DASHES[seeds.index(row.record["seed"]) % len(DASHES)], symbol, method)
        traces.append(
            drawn
            | {
                "legendgroup": method,
                "showlegend": method not in named,
                "hovertemplate": f"{charts.text(row.label)}: %{{y:.3g}}<extra></extra>",
            }
        )
        named.add(method)
    return traces


def _log_axis(label: str, rows: list[_Run], name: str, *more: float) -> Spec:
    """A logarithmic axis: powers of ten where there are several of them, else 2 and 5 between too."""
    seen = [value for row in rows for value in row.top(name) if value] + list(more)
    wide = bool(seen) and max(seen) > 100 * min(seen)
    return charts.axis(label, type="log", exponentformat="power", dtick=1 if wide else "D2")


def _grown(rows: list[_Run]) -> _Run:
    """The run whose state has grown most."""
    return rows[foremost([float(row.record.get("h_ratio") or 0.0) for row in rows]) or 0]


def _temporal(rows: list[_Run]) -> Figure:
    """Both norms over epochs, an architecture a step, opened where a state has grown most."""
    frames, most = [], _grown(rows)
    for arch in _archs(rows):
        mine = [row for row in rows if row.record["arch"] == arch]
        states = {"xaxis": charts.axis("epoch"), "yaxis": _log_axis("|h_L|", mine, "h_norm")}
        shapes = [charts.rule_line(mine[0].eps, "eps, the clamp"), charts.rule_line(10 * mine[0].eps, "10 eps, where (b) fires")]
        shapes[1]["line"] = shapes[1]["line"] | {"dash": "dash"}
        sunk = {"xaxis": charts.axis("epoch"), "yaxis": _log_axis("|g_L|", mine, "g_norm", mine[0].eps), "shapes": shapes}
        panels = (
            Panel(PLOTLY, {"data": _lines(mine, "h_norm"), "layout": states}, "The state's norm"),
            Panel(PLOTLY, {"data": _lines(mine, "g_norm"), "layout": sunk}, "The reference's norm (loss summed, over 1,024)"),
        )
        frames.append(Frame(panels, NAMES.get(arch, arch)))
    grown, sunk_to = (charts.number(most.record.get(key)) for key in ("h_ratio", "g_ratio"))
    title = f"{most.label}: the state's norm ends at {grown} times its first value, the reference's at {sunk_to} times"
    caption = "A line a run; a dash a seed. Means over the test samples looked at. Opened where a state has grown most."
    alt = f"Lines of two norms over epochs for {len(rows)} runs. {title}."
    first = _archs(rows).index(most.record["arch"])
    return Figure(title, tuple(frames), alt, caption, stepper="architecture", first=first, height=340)


def _loglog(rows: list[_Run]) -> Figure:
    """The reference against the state, with the line of slope -1 through the initialisation."""
    frames = []
    for arch in _archs(rows):
        mine = [row for row in rows if row.record["arch"] == arch]
        traces, named = [], set[str]()
        for row in mine:
            color, symbol = row.look
            method = str(row.record["method"])
            marks = {
                "mode": "lines+markers",
                "type": "scatter",
                "x": row.top("h_norm"),
                "y": row.top("g_norm"),
                "name": method,
                "legendgroup": method,
            }
            drawn = {
                "line": {"color": color, "width": 1},
                "marker": {"color": color, "symbol": symbol, "size": 6},
                "showlegend": method not in named,
            }
            traces.append(
                marks | drawn | {"hovertemplate": f"{charts.text(row.label)}<br>|h_L| %{{x:.3g}}, |g_L| %{{y:.3g}}<extra></extra>"}
            )
            named.add(method)
        seen = [value for row in mine for value in row.top("h_norm") if value]
        start = (mine[0].top("h_norm")[0] or 1.0) * (mine[0].top("g_norm")[0] or 1.0)
        ends = [min(seen), max(seen)]
        ideal = {"type": "scatter", "mode": "lines", "x": ends, "y": [start / end for end in ends], "name": "slope −1"}
        traces.append(ideal | {"line": {"color": "@ink", "dash": "dot", "width": 1.2}, "hoverinfo": "skip"})
        lowest = start / ends[1]
        layout = {"xaxis": _log_axis("|h_L|", mine, "h_norm"), "yaxis": _log_axis("|g_L|", mine, "g_norm", lowest)}
        frames.append(Frame((Panel(PLOTLY, {"data": traces, "layout": layout}),), NAMES.get(arch, arch)))
    most = _grown(rows)
    slope = most.record.get("slope")
    title = "The reference's norm against the state's"
    if slope is not None:
        title = f"{most.label}: the reference goes as the state's norm to the power {float(slope):.2f}"
    caption = (
        "Each mark is a moment of a run. On the dotted line, of slope −1, a reference shrinks only because its state has grown: a change "
        "of units, as behind a terminal layer norm."
    )
    first = _archs(rows).index(most.record["arch"])
    return Figure(title, tuple(frames), f"Log-log plot of two norms. {title}.", caption, stepper="architecture", first=first, height=420)


def _growth(rows: list[_Run]) -> Figure:
    """Relative growth of each block's weights, the runs of the worst verdicts first."""
    chosen = sorted(rows, key=lambda row: -VERDICTS.get(row.record["verdict"], 0))[:HEROES]
    frames = []
    for row in chosen:
        traces = []
        for place in range(1, row.data.sizes["layer"]):
            values = charts.values(row.data["weight_delta"].isel(layer=place))
            color = f"@series-{(place - 1) % 4 + 1}"
            traces.append(_line(row, values, color, DASHES[(place - 1) % 5], "circle", f"block {place}"))
        layout = {
            "xaxis": charts.axis("epoch"),
            "yaxis": charts.axis("largest |W − W0| / |W0|", rangemode="tozero"),
            "hovermode": "x unified",
        }
        frames.append(Frame((Panel(PLOTLY, {"data": traces, "layout": layout}),), row.label))
    ends = [charts.values(chosen[0].data["weight_delta"].isel(layer=place))[-1] for place in range(1, chosen[0].data.sizes["layer"])]
    most = foremost([math.nan if value is None else value for value in ends])
    title = "How far each block's weights have gone from where they began"
    if most is not None:
        title = f"{chosen[0].label}: the weights of block {most + 1} have gone {charts.number(ends[most])} times their first norm"
    caption = "The largest over a block's matrices, after each epoch. Runs of the worst verdicts first."
    return Figure(title, tuple(frames), f"Lines of relative weight growth by block. {title}.", caption, stepper="run", height=320)


def _firings(rows: list[_Run]) -> Table:
    """First firing epochs, a row a run."""
    cells = []
    for row in rows:
        epochs = [row.record.get(f"first_firing_{name}") for name in FIRST]
        whole = [None if epoch is None else int(epoch) for epoch in epochs]
        cells.append([row.label, *whole, row.record["verdict"].replace("_", " ").lower(), _why(row.record["cause"])])
    caption = (
        "A dash where it never fires. (a) inflation of h_L; (a′) growth within a block; (b) reference below the floor; (b′) clamp bias; "
        "(d) a nudge against the credit helps no more than a random one; (e) cosine within that of random feedback; (f) frozen blocks do "
        "as well. Cause: a unit collapse where the state's growth explains a reference below the floor; some samples where only those are."
    )
    return Table("First firing epochs", ("run", *FIRST.values(), "verdict", "cause"), cells, caption)


def _why(cause: str | None) -> str:
    """(c)'s label in a word or two."""
    return (cause or "–").partition(":")[0] if not (cause or "").startswith("some") else "some samples"


def _replay(rows: list[_Run]) -> Table:
    """The first epochs."""
    cells: list[list[Any]] = []
    for kind, group in _groups(rows).items():
        for name, sign in (("h_norm", "|h_L|"), ("g_norm", "|g_L|")):
            values = [_mean([row.epoch(epoch, name) for row in group], geometric=True) for epoch in range(5)]
            cells.append([kind, sign, *values])
    return Table("The first epochs", ("run", "norm", *map(str, range(5))), cells, "Geometric means over seeds.")
