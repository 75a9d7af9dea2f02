"""Pages of the diagnostics and of equilibrium trainings: what they show is what was measured; Results without their arrays get a page."""

import numpy as np
import pytest

from tests.gallery.samples import HOSTILE, manifest
from wallprobe.gallery.build import render
from wallprobe.gallery.exhibits import branches, campaign, collapse, equilibrium, lr_sweep, mixing, triangulate
from wallprobe.hooks.diagnostics.signs import TYPES, signs
from wallprobe.store.results import Result, dataset

CKPTS = ["s0", HOSTILE[1]]
MAKERS = {
    "triangulate": triangulate.exhibit,
    "lr_sweep": lr_sweep.exhibit,
    "branches": branches.exhibit,
    "mixing": mixing.exhibit,
    "collapse": collapse.exhibit,
    "matched": equilibrium.matched,
    "gate": equilibrium.gate,
    "grid": equilibrium.grid,
    "equilibrium": equilibrium.training,
    "campaign": campaign.exhibit,
    "signs": campaign.signs,
}


def variables(names, dims, shape, start=0.1):
    return {name: (dims, np.linspace(start, start + 0.8, int(np.prod(shape))).reshape(shape), "1", name) for name in names}


def triangulated() -> Result:
    made = variables([*triangulate.MORE[:6], "cos", "cos_low", "cos_high", "res"], ("ckpt", "estimator"), (2, 3))
    made |= variables(["batch_cos", "batch_k"], ("ckpt", "estimator", "batch"), (2, 3, 2))
    made |= variables(["group_cos"], ("ckpt", "estimator", "group"), (2, 3, 2))
    made |= {"val": (("ckpt",), [3.0, 2.0], "nats", "val")}
    made |= {"reason": (("ckpt", "estimator"), [["", "", ""], ["", "", "did not converge on 1 of 2 batches"]], "text", "why")}
    coords = {"ckpt": CKPTS, "estimator": ["eqprop", "bptt60", "implicit"], "group": ["ln", "qk"], "batch": [0, 1]}
    roles = {"reference": "bptt60", "ceiling": "", "tested": "eqprop", "scope": "block"}
    data = dataset(coords, made, **roles)
    return Result("triangulate", data, ("ckpt", "estimator"), {"res": 1e-5, "finding": "F."}, manifest("m"))


def swept() -> Result:
    made = variables(["delta", "first_order"], ("gradient", "lr"), (2, 3), start=-0.9)
    made |= {"diverged": (("gradient", "lr"), [[0, 0, 0], [0, 0, 1]], "1", "d"), "cos": (("gradient",), [1.0, 0.1], "1", "c")}
    made |= {"k": (("gradient",), [1.0, 9.0], "1", "k"), "reason": (("gradient",), ["", ""], "text", "why")}
    made["delta"][1][1, 2] = np.nan
    roles = {"reference": "bptt60", "evaluate": "same", "normalise": "none"}
    data = dataset({"gradient": ["bptt60", "eqprop"], "lr": [1e-3, 1e-2, 1e-1]}, made, **roles)
    return Result("lr_sweep", data, ("gradient", "lr"), {"finding": "F."}, manifest("m"))


def arms(kind: str) -> Result:
    made = variables(["best_val", "best_step", "skip_share", "first_valid", "res_0"], ("arm",), (3,))
    made |= variables(["log_step", "log_val"], ("arm", "moment"), (3, 4)) | variables(["step_res", "step_lam"], ("arm", "step"), (3, 6))
    made |= {"step_skipped": (("arm", "step"), np.zeros((3, 6)), "", "skipped")}
    made |= {"status": (("arm",), ["done", "lodged", "done"], "", "status")}
    summary = {
        "architecture_gap": None,
        "architecture_gap_reason": "arm bptt lodged",
        "rule_gap": 0.25,
        "rule_gap_reason": "",
        "finding": "F.",
    }
    runs = [{"recipe": {"control": {"most": 32.0, "target": 0.5}}}] * 3
    made["first_valid"][1][1] = np.nan
    data = dataset({"arm": ["ep", "bptt", "bp"], "moment": range(4), "step": range(6)}, made)
    return Result(kind, data, ("arm",), summary, manifest("m") | {"config": {"runs": runs}})


def gridded() -> Result:
    made = variables(["best_val", "best_val_low", "best_val_high", "delta", "floor"], ("setting",), (3,))
    data = dataset({"setting": ["a/b/c", "d/e/f", "g/h/i"]}, made)
    return Result("grid", data, ("setting",), {"start_val": 2.4, "noise_sd": 0.1, "spread": 0.3, "finding": "F."}, manifest("m"))


def test_a_triangulation_shows_its_row_and_hides_the_size_of_what_did_not_converge() -> None:
    page = triangulate.exhibit(triangulated())
    assert page.sections[0].columns == ("ckpt", "val", "res", "eqprop·bptt60", "k", "eqprop self", "bptt60 self")
    assert page.sections[0].rows[0][0] == "s0"
    traces = page.sections[2].frames[0].panels[0].spec["data"]
    assert [trace["name"] for trace in traces] == ["unbiased with noise: k cos = 1", "eqprop", "implicit"]
    assert traces[0]["x"][-1] * traces[0]["y"][-1] == pytest.approx(1)
    assert traces[2]["y"].count(None) == 2
    assert page.sections[-1].columns[-1] == "but"


def test_a_sweep_draws_falls_on_a_log_scale_and_names_what_diverges() -> None:
    page = lr_sweep.exhibit(swept())
    assert page.sections[0].title == "Diverging within the grid: eqprop"
    assert page.sections[0].frames[0].panels[0].spec["data"][0]["y"][0] == pytest.approx(0.9)
    assert page.sections[2].rows[2][2] == "div"
    assert page.sections[1].rows[1][3] == pytest.approx(0.1)


def test_a_gap_that_is_not_there_says_why() -> None:
    page = equilibrium.matched(arms("matched"))
    gaps = next(section for section in page.sections if section.title.startswith("The two gaps"))
    assert [row[1] for row in gaps.rows] == ["n/a (arm bptt lodged)", "0.25"]
    rows = equilibrium.gate(arms("gate")).sections[-1]
    assert "never" in [row[rows.columns.index("first valid step")] for row in rows.rows]


def test_signs_are_numbers_beside_marks() -> None:
    made = signs([triangulated(), swept(), arms("matched"), gridded()])
    cells = {cell["what"]: cell for cell in made.values}
    over = cells["median residual over its target, same half"]
    res = arms("matched").data["step_res"].values[0]
    assert over["value"] == pytest.approx(float(np.median(res[3:])) / 0.5)
    assert over["past"] == float(over["value"] < 1)
    assert cells["rule gap EP − BPTT+ctl, nats"]["past"] == 1.0
    assert cells["architecture gap BPTT+ctl − BP, nats"]["past"] is None
    assert cells["influence at the longest distance over that at 1, equilibrium over transformer"]["value"] is None
    assert made.summary["missing"] == "gate, branches, mixing"
    page = campaign.signs(made)
    assert len([section for section in page.sections if section.title.startswith("Signs of")]) == len(TYPES)


@pytest.mark.parametrize("result", [triangulated(), swept(), arms("matched"), arms("gate"), gridded(), signs([triangulated()])])
def test_pages_render_with_hostile_names(result) -> None:
    text, _ = render(result, MAKERS, "x")
    assert "failed" not in text
    assert HOSTILE[0] not in text
    assert "</script><script>window.pwned" not in text


@pytest.mark.parametrize("kind", list(MAKERS))
def test_a_result_without_its_arrays_still_gets_a_page(kind) -> None:
    data = dataset({"row": [1, 2]}, {"value": (("row",), [1.0, 2.0], "1", "v")})
    text, _ = render(Result(kind, data, ("row",), {"finding": "F."}, manifest("m")), MAKERS, "x")
    assert "failed" not in text
    assert "F." in text
