"""The pages of geometry, temperature and calibration: what they say, that plotly takes them, and that they stand in a browser."""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wallprobe.gallery import build_site, render
from wallprobe.gallery.exhibits import calibration, geometry, temperature
from wallprobe.store.results import Result, dataset

MAKERS = {"calibration": calibration.exhibit, "geometry": geometry.exhibit, "temperature": temperature.exhibit}
ATTACK = "</script><img src=x onerror=window.pwned=1>"
POSITIONS, HORIZON = np.arange(1, 16), 5
TRAINED = POSITIONS <= HORIZON


def manifest(kind: str, run: str) -> dict[str, Any]:
    return {"command": f"wallprobe {kind} {run}", "config": {"run": run}, "created": "2026-01-02T03:04:05+00:00", "subject": run}


def bounded(variables: dict[str, Any], half: float = 0.02) -> dict[str, Any]:
    made = dict(variables)
    for name, (dims, values, units, what) in variables.items():
        made |= {f"{name}_low": (dims, values - half, units, what), f"{name}_high": (dims, values + half, units, what)}
    return made


def temperatures(run: str = "c0") -> Result:
    """Trained positions want T = 1, the others a temperature of 3 that leaves 1.7 bits."""
    grid = 10 ** (np.arange(-10, 21) / 10)
    best = np.where(TRAINED, 1.0, 3.0)
    floor = np.where(TRAINED, 0.01, 1.7)
    kl = floor[:, None] + 0.3 * np.log(grid[None, :] / best[:, None]) ** 2
    along = ("position",)
    variables = bounded(
        {
            "kl_at_t_star_bits": (along, floor, "bits", "best"),
            "kl_at_one_bits": (along, floor + np.where(TRAINED, 0, 0.36), "bits", "T = 1"),
            "kl_uniform_bits": (along, np.full(15, 2.04), "bits", "uniform"),
            "inverse_t_star": (along, 1 / best, "1", "1/T*"),
            "top1": (along, np.where(TRAINED, 0.53, 0.15), "fraction", "top-1"),
            "top1_exact": (along, np.full(15, 0.53), "fraction", "exact top-1"),
        }
    ) | {"t_star": (along, best, "1", "T*"), "kl_bits": (("position", "temperature"), kl, "bits", "KL")}
    summary = {"run": run, "kl_best_bits_unsupervised": 1.7, "kl_uniform_bits_unsupervised": 2.04, "top1_unsupervised": 0.15}
    summary |= {"top1_exact_unsupervised": 0.53, "finding": f"{run}: no temperature recovers Bayes."}
    data = dataset({"position": POSITIONS, "temperature": grid}, variables, horizon=HORIZON, run=run)
    return Result("temperature", data, along, summary, manifest("temperature", run))


def calibrated(run: str = "p5") -> Result:
    """Calibrated and wrong beyond the wall, with empty bins."""
    along, sides = ("position",), ("side", "bin")
    share = np.array([[0.6, 0, 0.2, 0, 0.2], [0.5, 0, 0, 0, 0.5]])
    middle = np.where(share > 0, np.linspace(0.1, 0.9, 5)[None, :], np.nan)
    hit = middle.copy()
    hit[1, 4] = 0.06
    variables = bounded(
        {
            "best_mass": (along, np.where(TRAINED, 0.9, 0.06), "probability", "mass"),
            "best_mass_geomean": (along, np.where(POSITIONS == 1, np.nan, np.where(TRAINED, 0.9, 5e-4)), "probability", "geomean"),
            "best_posterior": (along, np.where(POSITIONS == 1, np.nan, 0.95), "probability", "due"),
            "ece_confidence": (along, np.full(15, 0.005), "probability", "sure"),
            "ece_drawn": (along, np.where(TRAINED, 0.01, 0.47), "probability", "right"),
            "bin_share": (sides, share, "fraction", "share"),
            "bin_confidence": (sides, middle, "probability", "confidence"),
            "bin_exact_confidence": (sides, middle, "probability", "due"),
            "bin_accuracy": (sides, hit, "fraction", "right"),
            "bin_exact_accuracy": (sides, hit, "probability", "right"),
        },
        half=1e-4,
    )
    variables |= {
        f"reference_{name}": (("side", "predictor"), np.array([[0.05, 0, 0, 1.1], [0.04, 1e-16, 0, 2.0]]), "1", name)
        for name in calibration.ROWS
    }
    summary = {"run": run, "ece_confidence_unsupervised": 0.005, "ece_drawn_unsupervised": 0.47, "best_mass_geomean_unsupervised": 5e-4}
    summary |= {"best_posterior_unsupervised": 0.95, "finding": f"{run}: calibrated and wrong."}
    coords = {"position": POSITIONS, "side": ["trained", "unsupervised"], "bin": np.linspace(0.1, 0.9, 5)}
    coords["predictor"] = ["run", "exact", "relabelled", "uniform"]
    data = dataset(coords, variables, horizon=HORIZON, run=run)
    return Result("calibration", data, along, summary, manifest("calibration", run))


def cosines(run: str = "c0") -> Result:
    """A cosine that rises with depth to what another sequence of the class has."""
    depth, index = np.linspace(0.1, 0.5, 6)[:, None], np.arange(15)[None, :]
    own = np.where(index == 4, 1.0, depth)
    cells = {name: (("layer", "index"), own - 0.01 * place, "1", name) for place, name in enumerate([*geometry.ARMS, *geometry.CENTRED])}
    pairs = {name: (("layer",), depth[:, 0] - 0.02 * place, "1", name) for place, name in enumerate(geometry.PAIRWISE)}
    summary = {"run": run, "cosine_last_layer": 0.5, "cosine_first_layer": 0.1, "cosine_same_class_last_layer": 0.46}
    summary |= {"pairwise_cosine_last_layer": 0.5, "finding": f"{run}: rising with depth."}
    data = dataset({"layer": np.arange(6), "index": np.arange(15)}, bounded(cells | pairs), horizon=HORIZON, run=run)
    return Result("geometry", data, ("layer", "index"), summary, manifest("geometry", run))


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("audits")
    for make in (temperatures, calibrated, cosines):
        make().save(root / "results")
        make(ATTACK).save(root / "results")
    return build_site(root / "results", root / "site", exhibits=MAKERS).index.parent


def specs(made: Any) -> list[dict[str, Any]]:
    figures = [section for section in made.sections if hasattr(section, "frames")]
    return [dict(panel.spec) for figure in figures for frame in figure.frames for panel in frame.panels]


def test_the_sweep_draws_both_sides_and_the_wall_stands_in_the_rest() -> None:
    sweep, positions, best, top1 = specs(temperature.exhibit(temperatures()))
    bold = {trace["name"]: trace for trace in sweep["data"] if trace.get("showlegend", True)}
    assert list(bold) == ["supervised positions", "unsupervised positions"]
    lowest = {name: trace["x"][int(np.argmin(trace["y"]))] for name, trace in bold.items()}
    assert lowest == {"supervised positions": pytest.approx(1.0), "unsupervised positions": pytest.approx(3.16, abs=0.01)}
    assert len(sweep["data"]) == 15 + 2
    for spec in (positions, best, top1):
        assert spec["layout"]["shapes"][1]["x0"] == 5.5
    assert [trace["name"] for trace in positions["data"] if "name" in trace] == ["uniform guess", "T = 1", "best T of the position"]


def test_reliability_opens_at_the_unsupervised_side_and_leaves_empty_bins_out() -> None:
    made = calibration.exhibit(calibrated())
    figure = made.sections[0]
    assert figure.frames[figure.first].label == "unsupervised positions"
    drawn = specs(made)[1]["data"][-1]
    assert drawn["y"] == [pytest.approx(0.1), None, None, None, pytest.approx(0.06)]
    assert drawn["marker"]["size"][0] == drawn["marker"]["size"][4] > drawn["marker"]["size"][1]
    mass = specs(made)[2]
    assert mass["layout"]["yaxis"]["type"] == "log"
    table = made.sections[-1]
    assert table.rows[0] == ["Entropy error, bits", 0.04, 0.0, 0.0, 2.0]


def test_geometry_shows_the_unsupervised_mean_beside_its_controls() -> None:
    made = geometry.exhibit(cosines())
    by_layer = specs(made)[0]
    assert [trace["name"] for trace in by_layer["data"]] == [label for label, *_ in geometry.ARMS.values()]
    assert by_layer["data"][0]["y"] == pytest.approx(np.linspace(0.1, 0.5, 6))  # index 4, which has 1, is not among them
    assert made.sections[1].frames[0].label == "same sequence"
    assert specs(made)[1]["layout"]["shapes"][0]["x0"] == 4.5


@pytest.mark.parametrize("kind", MAKERS)
def test_a_result_without_its_arrays_still_gets_a_table(kind: str) -> None:
    data = dataset({"position": POSITIONS}, {"figure": (("position",), POSITIONS / 2, "1", "figure")})
    made = MAKERS[kind](Result(kind, data, ("position",), {"run": "c0"}, manifest(kind, "c0")))
    assert len(made.sections) == 1
    assert made.sections[0].columns == ("position", "figure")


def test_specs_are_valid_plotly_and_pages_sealed(audits: Path) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")

    def concrete(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: concrete(item) for key, item in value.items()}
        if isinstance(value, list):
            return [concrete(item) for item in value]
        themed = isinstance(value, str) and re.match(r"^@[a-z0-9:.-]+$", value)
        return ("Viridis" if value.startswith("@ramp") else "#123456") if themed else value

    for made in (temperature.exhibit(temperatures()), calibration.exhibit(calibrated()), geometry.exhibit(cosines())):
        for spec in specs(made):
            assert graph_objects.Figure(concrete(spec)).data
    for path in (audits / "results").glob("*.html"):
        assert "<img" not in path.read_text(encoding="utf-8")
    assert render.kind_title("calibration")[0] == "Calibration"


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 375)])
def test_every_figure_is_drawn(browser: Any, audits: Path, scheme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    for start, count in (("calibration-p5", 3), ("geometry-c0", 4), ("temperature-c0", 4)):
        page, problems = context.new_page(), []
        page.on("console", lambda message, into=problems: into.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error, into=problems: into.append(str(error)))
        page.goto(next((audits / "results").glob(f"{start}-*.html")).as_uri())
        sections = page.query_selector_all("[data-figure]")
        assert len(sections) == count
        for section in sections:
            section.scroll_into_view_if_needed()
            end = time.monotonic() + 15
            while not (plot := section.query_selector(".chart .nsewdrag")):  # the plotting area, without legend and axes
                assert time.monotonic() < end, "a figure was not drawn"
                time.sleep(0.03)
            size = plot.bounding_box()
            assert min(size["width"], size["height"]) > 100
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        assert problems == []
        page.close()
    context.close()
