"""Exhibits of what any model is measured on text: drawn by their figures, by kind as declared, and as tables where figures are missing."""

from pathlib import Path

import numpy as np
import pytest

from wallprobe.gallery.build import build_site
from wallprobe.gallery.exhibit import Figure, Table
from wallprobe.gallery.exhibits import text
from wallprobe.store.results import Result, dataset

LAYERS = [-1, 0, 1]


def made(kind: str, coords: dict[str, list[object]], names: list[str]) -> Result:
    """A Result of these figures, each with bounds, NaN in one place."""
    dims, shape = tuple(coords), tuple(map(len, coords.values()))
    variables = {}
    for number, name in enumerate(names):
        values = np.linspace(0.1, 0.9, int(np.prod(shape))).reshape(shape) + number
        values.flat[0] = np.nan
        for end, shift in (("", 0.0), ("_low", -0.1), ("_high", 0.1)):
            variables[f"{name}{end}"] = (dims, values + shift, "fraction", name)
    return Result(kind, dataset(coords, variables, model="m"), dims, {"model": "m", "finding": "m: found."}, {"subject": "m", "config": {}})


SAMPLES = {
    "probe_labels": (text.probes, made("probe_labels", {"layer": [*LAYERS]}, [*text.PROBES]), 1),
    "attention_heads": (text.heads, made("attention_heads", {"layer": [0, 1], "head": [0, 1, 2]}, [*text.STATISTICS]), 6),
    "ablation_states": (
        text.ablated,
        made("ablation_states", {"site": ["mlp_out"], "layer": [0, 1], "replacement": ["zero", "mean"]}, [*text.ABLATED]),
        2,
    ),
    "geometry_states": (
        text.shapes,
        made("geometry_states", {"layer": [*LAYERS]}, [name for _, _, styles in text.SHAPES for name in styles]),
        3,
    ),
    "readout_labels": (text.edited, made("readout_labels", {"layer": [*LAYERS], "edit": ["remove", "swap"]}, [*text.EDITED]), 2),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_step_is_drawn_and_the_values_stand_below(kind: str) -> None:
    exhibit, result, steps = SAMPLES[kind]
    found = exhibit(result)
    figure, table = found.sections
    assert isinstance(figure, Figure)
    assert isinstance(table, Table)
    assert len(figure.frames) == steps
    assert found.title == "m: found."
    for frame in figure.frames:
        assert frame.panels[0].spec["data"]


@pytest.mark.parametrize("kind", SAMPLES)
def test_without_its_figures_it_is_a_table(kind: str) -> None:
    exhibit, _, _ = SAMPLES[kind]
    bare = made(kind, {"place": [0, 1]}, ["something"])
    assert all(isinstance(section, Table) for section in exhibit(bare).sections)


def test_the_site_holds_a_page_of_each(tmp_path: Path) -> None:
    for _, result, _ in SAMPLES.values():
        result.save(tmp_path / "store")
    site = build_site(tmp_path / "store", tmp_path / "site", exhibits={kind: maker for kind, (maker, _, _) in SAMPLES.items()})
    pages = sorted((site.index.parent / "results").glob("*.html"))
    assert len(pages) == len(SAMPLES)
    assert not [page.name for page in pages if "failed" in page.read_text(encoding="utf-8")]


def test_the_kinds_are_declared() -> None:
    declared = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    for kind, (exhibit, _, _) in SAMPLES.items():
        assert f'{kind} = "wallprobe.gallery.exhibits.text:{exhibit.__name__}"' in declared
