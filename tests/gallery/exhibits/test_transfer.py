"""The pages of ablation, rescue and readout: what they draw, that plotly takes it, and that a Result without arrays gets a table."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wallprobe.gallery import build_site
from wallprobe.gallery.exhibits import ablation, readout, rescue
from wallprobe.store.results import Result, dataset

MAKERS = {"ablation": ablation.exhibit, "rescue": rescue.exhibit, "readout": readout.exhibit}
ATTACK = "</script><img src=x onerror=window.pwned=1>"
Variables = dict[str, tuple[tuple[str, ...], Any, str, str]]


def manifest(kind: str, run: str) -> dict[str, Any]:
    return {"command": f"wallprobe {kind} {run}", "config": {"run": run}, "created": "2026-01-02T03:04:05+00:00", "subject": run}


def bounded(variables: Variables, half: float = 0.02) -> Variables:
    made = dict(variables)
    for name, (dims, values, units, what) in variables.items():
        made |= {f"{name}_low": (dims, values - half, units, what), f"{name}_high": (dims, values + half, units, what)}
    return made


def ablated(run: str = "c0") -> Result:
    """The subspace matters most at index 3."""
    dims = ("layer", "index")
    levels = {"": 0.3, "_base": 0.99, "_span": 0.8, "_whole": 0.06}
    fall = np.array([[0.2, 0.0], [0.1, 0.0]])
    cells: Variables = {
        f"{metric}{arm}": (dims, np.full((2, 2), level) - (fall if not arm else 0), "1", metric)
        for metric in ablation.METRICS
        for arm, level in levels.items()
    }
    cells["excess"] = (dims, 0.5 + fall, "probability", "excess")
    cells = bounded(cells) | {
        "subspace_dims": (dims, np.full((2, 2), 8.0), "dimensions", "dims"),
        "subspace_variance": (dims, np.full((2, 2), 0.25), "fraction", "share"),
    }
    data = dataset({"layer": [0, 1], "index": [3, 4]}, cells, run=run, subspace="probes:a,b", method="mean", chance=1 / 17)
    return Result("ablation", data, dims, {"run": run, "finding": f"{run}: what is lost."}, manifest("ablation", run))


def rescued(run: str = "c0") -> Result:
    """Right from the first block on."""
    levels = {"accuracy": [0.3, 0.9, 1.0], "accuracy_before": [0.2] * 3, "accuracy_redirect": [0.1, 0.6, 1.0]}
    levels |= {f"accuracy_{name}": [0.06] * 3 for name in ("redirect_own", "redirect_rule", "random", "norm")}
    cells = bounded({name: (("block",), np.array(values), "fraction", name) for name, values in levels.items()})
    by_index = np.array([[0.3, np.nan], [0.8, np.nan], [1.0, np.nan]])
    cells |= {name: (("block", "index"), by_index, "fraction", name) for name in ("accuracy_by_index", "accuracy_before_by_index")}
    cells["sequences_by_index"] = (("index",), np.array([40, 0], dtype="int32"), "sequences", "n")
    data = dataset({"block": [0, 1, 2], "index": [5, 6]}, cells, run=run, chance=1 / 17)
    return Result("rescue", data, ("block",), {"run": run, "finding": f"{run}: rescued."}, manifest("rescue", run))


def read_out(run: str = "c0") -> Result:
    """The second pair, of two initialisations, crosses with a ridge map alone."""
    dims, shape = ("pair", "align", "index", "depth"), (2, 3, 2, 4)
    imported = np.full(shape, 0.06)
    imported[1, 2, 1, 3] = 0.8
    rule = np.full(shape, 0.05)
    rule[0, 0, 0, 2] = 0.07
    cells = bounded({"p_import": (dims, imported, "probability", "import"), "p_rule": (dims, rule, "probability", "rule")})
    cells |= {name: (dims, np.full(shape, 0.055), "probability", name) for name in ("p_import_random", "p_rule_random")}
    r2 = np.full(shape, 0.5)
    r2[:, 0] = np.nan
    cells |= {
        "alignment_r2": (dims, r2, "R^2", "R^2"),
        "shared_initialisation": (("pair",), np.array([1, 0], dtype="int32"), "1", "shared"),
    }
    coords = {"pair": [f"p5 to {run}", f"c0@7 to {run}"], "align": ["none", "procrustes", "ridge"], "index": [3, 4], "depth": [0, 1, 2, 3]}
    data = dataset(coords, cells, noise_floor=1 / 17)
    return Result("readout", data, dims, {"pairs": run, "finding": f"Into {run}."}, manifest("readout", run))


SAMPLES = {"ablation": ablated, "rescue": rescued, "readout": read_out}


def specs(made: Any) -> list[list[dict[str, Any]]]:
    return [[dict(panel.spec) for frame in part.frames for panel in frame.panels] for part in made.sections if hasattr(part, "frames")]


def test_ablation_opens_at_the_index_that_matters_most() -> None:
    made = ablation.exhibit(ablated())
    figure = made.sections[0]
    assert [frame.label for frame in figure.frames[:2]] == [f"probability of the correct token, index {index}" for index in (3, 4)]
    lines = {trace["name"]: trace["y"] for trace in specs(made)[0][0]["data"] if "name" in trace}
    assert lines["subspace"] == pytest.approx([0.1, 0.2])
    assert lines["random spans"] == pytest.approx([0.8, 0.8])
    assert set(lines) == {"nothing ablated", "subspace", "random spans", "whole state"}
    assert "8 (25%)" in figure.caption


def test_rescue_draws_its_controls_redirects_and_indices() -> None:
    made = rescue.exhibit(rescued())
    first, second, third = specs(made)
    assert {trace["name"] for trace in first[0]["data"] if "name" in trace} == {label for label, *_ in rescue.RESCUED.values()}
    assert {trace["name"] for trace in second[0]["data"] if "name" in trace} == {label for label, *_ in rescue.REDIRECTED.values()}
    assert first[0]["data"][-1]["x"] == ["0", "1", "2"]
    assert third[1]["data"][0]["y"] == [pytest.approx(0.8), None]
    assert "up to 0.600 before the last block" in made.sections[1].title


def test_readout_opens_at_the_strongest_pair_with_raw_and_aligned_side_by_side() -> None:
    made = readout.exhibit(read_out())
    answers = made.sections[0]
    assert answers.frames[answers.first].label == "c0@7 to c0, two initialisations"
    lines = {trace["name"]: trace["y"] for trace in specs(made)[0][1]["data"] if "name" in trace}
    assert (max(lines["raw"]), max(lines["rotated"]), max(lines["ridge-aligned"])) == pytest.approx((0.06, 0.06, 0.8))
    rules = {trace["name"]: trace["y"] for trace in specs(made)[1][0]["data"] if "name" in trace}
    assert max(rules["raw"]) == pytest.approx(0.07)  # at the other index, where it is larger
    assert len(specs(made)[2][0]["data"]) == 4
    fits = specs(made)[2][0]["data"]
    assert [trace["showlegend"] for trace in fits] == [True] * 4
    assert [trace["name"] for trace in fits[:2]] == ["rotated, p5 to c0", "rotated, c0@7 to c0"]
    assert fits[0]["marker"]["symbol"] != fits[1]["marker"]["symbol"]
    assert made.sections[-1].rows == [
        ["p5 to c0, one initialisation", *["0.060"] * 3, "0.070"],
        ["c0@7 to c0, two initialisations", "0.060", "0.060", "0.800", "0.050"],
    ]


def test_many_pairs_share_the_legend_of_the_fits_by_initialisation() -> None:
    data = read_out().data.isel(pair=[0, 1] * 3).assign_coords(pair=[f"run {number}" for number in range(6)])
    fits = specs(readout.exhibit(replace(read_out(), data=data)))[2][0]["data"]
    assert len(fits) == 12
    assert [trace["name"] for trace in fits if trace["showlegend"]] == [
        f"{basis}, {starts} initialisation{end}" for basis in ("rotated", "ridge-aligned") for starts, end in (("one", ""), ("two", "s"))
    ]


@pytest.mark.parametrize("kind", MAKERS)
def test_a_result_without_its_arrays_still_gets_a_table(kind: str) -> None:
    data = dataset({"layer": [0, 1]}, {"figure": (("layer",), np.array([0.5, 1.0]), "1", "figure")})
    made = MAKERS[kind](Result(kind, data, ("layer",), {"run": "c0"}, manifest(kind, "c0")))
    assert len(made.sections) == 1
    assert made.sections[0].columns == ("layer", "figure")


@pytest.mark.parametrize("kind", MAKERS)
def test_specs_are_valid_plotly_and_pages_sealed(kind: str, tmp_path: Any) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")

    def concrete(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: concrete(item) for key, item in value.items()}
        if isinstance(value, list):
            return [concrete(item) for item in value]
        return "#123456" if isinstance(value, str) and re.match(r"^@[a-z0-9:.-]+$", value) else value

    for figure in specs(MAKERS[kind](SAMPLES[kind]())):
        for spec in figure:
            assert graph_objects.Figure(concrete(spec)).data
    SAMPLES[kind](ATTACK).save(tmp_path / "results")
    build_site(tmp_path / "results", tmp_path / "site", exhibits=MAKERS)
    found = list((tmp_path / "site" / "results").glob("*.html"))
    assert len(found) == 1
    assert "<img" not in found[0].read_text(encoding="utf-8")
