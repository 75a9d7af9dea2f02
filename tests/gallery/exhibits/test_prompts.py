"""The exhibit of an interchange on prompts: the strongest site first, an example pair before and after, hostile tokens kept as text."""

from dataclasses import replace

import numpy as np
import pytest

from wallprobe.gallery import build_site
from wallprobe.gallery.exhibits import prompts
from wallprobe.store.results import Result, dataset

SITES, LAYERS, TOKENS = ("resid_pre", "z"), 4, ["The", " king", " of", " <b>France</b>"]


@pytest.fixture
def measured(samples):
    """Two sites of 4 layers on indices 1 and 3; z restores less, and nothing is known of its last layer but at the last index."""
    restored = np.zeros((2, LAYERS, 2))
    restored[0, :, 1], restored[0, :, 0] = np.linspace(0, 0.9, LAYERS), np.linspace(0.4, 0, LAYERS)
    restored[1] = restored[0] * 0.3
    restored[1, -1, 0] = np.nan
    cells = ("site", "layer", "index")
    variables = {"restored": (cells, restored, "fraction", "restored")}
    samples.bounds(variables, ["restored"], 0.05)
    for arm in ("random", "mismatched", "norm"):
        variables[f"restored_{arm}"] = (cells, restored * 0.1, "fraction", arm)
    chance = np.stack([0.1 + 0.5 * restored, 0.2 - 0.1 * restored])
    variables |= {
        "example_p_answer": (("example", *cells), chance, "probability", "p"),
        "example_base_p_answer": (("example",), np.array([0.1, 0.2]), "probability", "p"),
        "example_clean_p_answer": (("example",), np.array([0.6, 0.3]), "probability", "p"),
        "example_clean_token": (("example", "token_index"), np.array([TOKENS, TOKENS]), "token", "clean"),
        "example_corrupt_token": (
            ("example", "token_index"),
            np.array([["The", " queen", " of", " <b>Spain</b>"], ["A", *TOKENS[1:]]]),
            "token",
            "corrupt",
        ),
        "example_answer": (("example",), np.array([" Paris", samples.HOSTILE[0]]), "token", "answer"),
        "example_wrong": (("example",), np.array([" Madrid", " Rome"]), "token", "wrong"),
    }
    coords = {"site": list(SITES), "layer": range(LAYERS), "index": [1, 3], "example": [0, 1], "token_index": range(4)}
    data = dataset({name: np.array(labels) for name, labels in coords.items()}, variables, src="one", dst="other", read_index=3)
    return Result("prompts", data, cells, {"finding": "From one to other."}, samples.manifest("one to other prompts"))


def test_sites_in_order_of_what_they_restore_and_gaps_where_nothing_is_known(measured):
    heat, _, lines = prompts.exhibit(measured).sections
    assert [frame.label for frame in heat.frames] == ["resid_pre: at most 0.90", "z: at most 0.27"]
    assert heat.frames[1].panels[0].spec["data"][0]["z"][-1] == [None, pytest.approx(0.27)]
    assert heat.frames[0].panels[0].spec["data"][0]["x"][0] == "1 king"
    assert "3 &lt;b&gt;France&lt;/b&gt;" in lines.title
    assert [trace["name"] for trace in lines.frames[0].panels[0].spec["data"] if trace.get("name")][-4:] == [
        "donor's state",
        "random donor",
        "other answer's donor",
        "random vector",
    ]


def test_an_example_pair_before_and_after_the_patch(measured):
    example = prompts.exhibit(measured).sections[1]
    assert [panel.element for panel in example.frames[0].panels] == ["ColoredTokens"] * 3
    clean, before, after = (panel.spec for panel in example.frames[0].panels)
    assert clean["tokens"] == TOKENS
    assert before["tokens"] == after["tokens"] == ["The", " queen", " of", " <b>Spain</b>"]
    assert [value != 0 for value in clean["values"]] == [value != 0 for value in before["values"]] == [False, True, False, True]
    # Layer 3 restores most: 0.9 of index 3 and nothing of index 1; what was not patched stays plain.
    assert after["values"] == pytest.approx([0, 0, 0, 0.45])
    assert after["maxValue"] == pytest.approx(0.5)
    lowered = example.frames[1].panels[2].spec
    assert lowered["values"][3] == pytest.approx(-0.09)
    assert "0.100 before, 0.550 after" in example.alt


def test_the_page_is_built_and_nothing_in_it_runs(measured, tmp_path):
    store = tmp_path / "results"
    measured.save(store)
    site = build_site(store, tmp_path / "site", exhibits={"prompts": prompts.exhibit})
    (page,) = site.index.parent.rglob("prompts-*.html")
    text = page.read_text(encoding="utf-8")
    assert "From one to other." in text
    assert "window.pwned=1</script>" not in text
    assert "<b>France</b>" not in text


def test_a_result_without_its_grid_still_has_a_page(measured):
    cut = measured.data.isel(site=0, drop=True)[["restored", "restored_random"]]
    assert prompts.exhibit(replace(measured, data=cut, table=("layer", "index"))).sections
