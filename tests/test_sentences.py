"""No sentence says more than its arrays: every generator of a finding, held to figures that differ by rounding and to clear ones.

Two walks over the package's syntax keep the tables whole: one over the functions that make a finding, one over the words that a bare
`<` or `>` chooses.
"""

import ast
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import xarray as xr

import wallprobe
from wallprobe.cli import probe as probe_command
from wallprobe.findings import foremost, rounding
from wallprobe.gallery.exhibits import gains as gains_page
from wallprobe.gallery.exhibits import geometry as geometry_page
from wallprobe.gallery.exhibits import scaling as scaling_page
from wallprobe.hooks.attach.labelled import Labelled
from wallprobe.hooks.attach.prompt_sets import PromptSet
from wallprobe.hooks.attach.subjects import Subject
from wallprobe.hooks.diagnostics import collapse, mixing, signs
from wallprobe.hooks.flow import report as flow
from wallprobe.hooks.gains import critical, rescale, scaling, series
from wallprobe.hooks.gains import report as gains
from wallprobe.hooks.gains.definitions import DEFINITIONS
from wallprobe.hooks.interchange import ablation, programs, prompts, readout, rescue, used, whole_states
from wallprobe.hooks.interchange import report as patches
from wallprobe.hooks.interchange.places import Place
from wallprobe.hooks.probes import arrays, labelled
from wallprobe.hooks.probes import report as probes
from wallprobe.hooks.states import heads, shape
from wallprobe.hooks.wall import calibration, geometry, temperature
from wallprobe.models import Loaded
from wallprobe.store.results import Result
from wallprobe.training.audit import diagnostics as audit
from wallprobe.training.equilibrium import experiments
from wallprobe.training.wall import evaluate

PACKAGE = Path(wallprobe.__file__).parent
SLIGHT = (1 - 1e-7, 1.0, 1 + 1e-7)


def bounded(name: str, value: float) -> dict[str, float]:
    """A figure whose interval is itself: all that can keep it from being told apart is rounding."""
    return {name: value, f"{name}_low": value, f"{name}_high": value}


def ablated(a: float, b: float) -> str:
    summary = {"run": "c0", "subspace": "pca:8", "dims": 8.0, "site": "resid_pre", "layer": 3, "index": 3, "method": "mean"}
    summary |= {"subspace_variance": 0.5, "span_variance": 0.5, "p_answer_base": 0.9, "p_answer_whole": 0.1}
    return ablation.finding(summary | {"p_answer": b, "p_answer_span": a} | bounded("excess", a - b))


def interchanged(a: float, b: float) -> str:
    cell = {"p_rule_random": 0.05, "base_p_rule": 0.05, "p_import_random": b, "base_p_import": 0.01}
    cell |= bounded("p_rule", 0.05) | bounded("p_import", a)
    attrs = {"src": "p5", "dst": "c0", "site": "resid_pre", "align": "none", "noise_floor": 1 / 17}
    place = Place("resid_pre", 3, 4)
    return programs.finding({place: cell}, attrs, place, place)


def swept(a: float, b: float) -> str:
    cell = {"base_p_import": 0.01, "p_import_random": b, programs.Q_VALUES["import"]: 0.0} | bounded("p_import", a)
    summary = {"src": "p5", "dst": "c0", "align": "none", "n_cells": 1, "noise_floor": 1 / 17, "rule_cells": 0, "max_p_rule": 0.05}
    summary |= {
        "rule_at": "here",
        "import_at": "here",
        "max_p_import": a,
        "import_cells": int(programs._crosses(cell, "import", 1 / 17)),
    }
    return programs._swept_finding(summary)


def prompted(a: float, b: float) -> str:
    cell = {"q_value": 0.0, "restored_random": 0.0, "p_answer": 0.5} | bounded("restored", a - b)
    summary = {"base_p_answer": 0.1, "n_pairs": 20, "n_cells": 1, "restoring_cells": int(prompts._restores(cell))}
    return prompts._finding("Within m", "clean", Place("resid_pre", 1, 2), cell, summary)


def patched(a: float, b: float) -> str:
    cell = {"p_x_random": b, "p_x_mismatched": 0.0, "p_x_norm": 0.0, "base_p_x": 0.0} | bounded("p_x", a)
    return patches.finding("a", "b", "x", Place("resid_pre", 1, 2), cell)


def read_out(a: float, b: float) -> str:
    summary: dict[str, Any] = {"n_pairs_same": 1, "n_pairs_other": 0, "n_pairs": 1, "noise_floor": 1 / 17}
    within = {}
    gain = (readout.MARGIN + a - b, readout.MARGIN + a - b, readout.MARGIN + a - b, a)
    for align in readout.BASES:
        summary |= {f"p_{name}_{align}_same": a for name in ("import", "rule")} | {f"crossing_import_{align}_same": 0}
        for start in readout.STARTS:
            summary[f"crossing_rule_{align}_{start}"] = int(start == "same" and gain[0] > readout.MARGIN)
            within[f"crossing_rule_{align}_{start}"] = int(start == "same" and gain[0] > readout.MARGIN and not readout._told_apart(gain))
    return readout.finding(summary, within)


def rescued(a: float, b: float) -> str:
    summary: dict[str, Any] = {"run": "c0", "chance": 1 / 17} | bounded("accuracy_before", b)
    for name in ("embedding", "block1", "block2"):
        summary |= bounded(f"accuracy_{name}", a) | {f"accuracy_redirect_{name}": 0.3}
    return rescue.finding(summary, 3)


def placed(a: float, b: float) -> str:
    summary: dict[str, Any] = dict.fromkeys((f"cosine_{name}_last_layer" for name in ("program", "noise", "same_class", "untrained")), 0.5)
    summary |= {"run": "c0", "cosine_last_layer": a, "cosine_first_layer": b} | bounded("rises_with_depth", a - b)
    return geometry._finding(summary)


def calibrated(entropy: tuple[float, float], mass: tuple[float, float]) -> str:
    """Entropy's error beyond the wall against what it may be, the mass of the Bayes-best token against half of its due."""
    summary: dict[str, Any] = {"run": "c0", "entropy_mae_unsupervised": entropy[0]}
    summary |= bounded("entropy_mae_trained", entropy[1] / evaluate.WALL_RATIO)
    summary |= {"best_mass_unsupervised": mass[0], "best_posterior_unsupervised": mass[1] / evaluate.RIGHT_SHARE}
    summary |= dict.fromkeys((f"{key}_unsupervised" for key in ("best_mass_geomean", "ece_confidence", "ece_drawn", "accuracy")), 0.1)
    margins = {"entropy": (entropy[0] - entropy[1],) * 2, "mass": (mass[0] - mass[1],) * 2}
    return calibration._finding(summary, margins)


def evaluated(**figures: float) -> str:
    summary: dict[str, Any] = {"run": "c0"}
    usual = {"trained_mae": 0.1, "untrained_mae": 0.1, "wall_ratio": 1.0, "bayes_best_mass": 0.9, "bayes_best_posterior": 1.0}
    for name, value in (usual | figures).items():
        summary |= bounded(name, value)
    return evaluate._finding(summary)


def tempered(a: float, b: float) -> str:
    sides = {f"{name}_unsupervised": 1.0 for name in ("kl_best_bits", "kl_at_one_bits", "kl_single_t_bits", "top1", "top1_exact", "t_star")}
    summary: dict[str, Any] = sides | {"kl_uniform_bits_unsupervised": 2.0, "kl_best_bits_trained": 0.1, "run": "c0"}
    return temperature._finding(summary | bounded("recovered_unsupervised", temperature.RECOVERED * a / b))


def probed(behind: float, ceiling: float, control: float) -> str:
    summary = {"run": "c0", "site": "resid_post", "layer": 3, "token_accuracy_supervised": 0.9, "token_accuracy_unsupervised": behind}
    return probes._finding(summary | {"token_ceiling_unsupervised": ceiling, "token_control_unsupervised": control})


def gained(a: float, b: float) -> str:
    variables = {f"{branch}_gain{end}": (("layer",), np.array([b / a])) for branch in ("attn", "mlp") for end in ("", "_low", "_high")}
    below = {branch: gains._below(variables, branch) for branch in ("attn", "mlp")}
    summary = {"n_layers": 1, "final_mlp_gain": b / a, "final_mlp_gain_no_sink": b / a, "n_sinks": 0, "final_mlp_sink_share": 0.0}
    return gains._finding(summary, DEFINITIONS["sublayer"], below)


def loudest(a: float, b: float) -> str:
    data = {f"{name}{end}": ("layer", [b, a]) for name in ("mlp_gain", "mlp_gain_no_sink") for end in ("", "_low", "_high")}
    measured = [Result("gains", xr.Dataset(data), ("layer",), {}, {})]
    told = [series._last_loudest(measured, name) for name in ("mlp_gain", "mlp_gain_no_sink")]
    return series.models_finding(told[0], told[1], 1, "sublayer")


def scaled(a: float, b: float) -> str:
    summary = {"coefficient": 1.0, "alpha": 0.3, "alpha_se": 0.1, "n_models": 8, "r2": 0.9, "ci_low": 0.1, "ci_high": 0.5}
    return scaling._finding(summary | {"p": 0.05 * b / a, "loo_significant": "8/8", "loo_p_high": 0.04})


def costly(a: float, b: float) -> str:
    costs = [b, a]
    return rescale.dearest([4, 5], [[cost, cost, cost] for cost in costs], foremost(costs, rescale.NOISE) or 0)


def costing(a: float, b: float) -> str:
    return rescale.dearest([4], [[a - b, a - b, a - b]], 0)


def flowed(a: float, b: float) -> str:
    return flow.ending([3.0, b, a], 1, (a - b, a - b))


def by_word(sentence: str) -> str:
    """A sentence with its layers, 0 and 1, as words: which it names is then part of what it says."""
    return sentence.replace("layer 0", "layer nought").replace("layer 1", "layer one")


def states_ablated(layers: list[tuple[float, float]]) -> str:
    """Of each layer the KL of the ablation and that of its stronger control."""
    names = [f"{metric}{arm}" for metric in whole_states.METRICS for arm in (*whole_states.ARMS, "_control", "_excess")]
    figures = {name: [0.1] * len(layers) for name in names} | {"kl": [kl for kl, _ in layers], "kl_control": [rest for _, rest in layers]}
    figures["kl_excess"] = [kl - rest for kl, rest in layers]
    columns = {f"{name}{end}": ("layer", values) for name, values in figures.items() for end in ("", "_low", "_high")}
    data = xr.Dataset(columns, {"layer": list(range(len(layers)))}, {"model": "m", "prompts": "p", "index": "all"})
    data = data.expand_dims(site=["mlp_out"]).expand_dims(replacement=["zero"], axis=-1).transpose("site", "layer", "replacement")
    return by_word(str(whole_states._summary(data, 20, 0.0)["finding"]))


def edited(remove: tuple[float, float], swap: tuple[float, float], largest_logit: float = 1.0) -> str:
    """Effect and control of either edit, through the cells of two texts."""
    by_text = arrays.ByText.of(torch.tensor([0, 1]), 0)
    columns: dict[str, list[float]] = {}
    for edit, (effect, control) in zip(used.EDITS, (remove, swap), strict=True):
        effects = {edit: torch.full((2,), effect, dtype=torch.float64)}
        for draw in range(arrays.DRAWS):
            effects |= {f"{edit}{kind}{draw}": torch.full((2,), control, dtype=torch.float64) for kind in ("_random", "_shuffled")}
        for name, value in used._cell(effects, edit, by_text, rounding(largest_logit)).items():
            columns.setdefault(name, []).append(value)
    data = xr.Dataset({name: (("layer", "edit"), [values]) for name, values in columns.items()}, {"layer": [3], "edit": list(used.EDITS)})
    data["validation_loss"] = (("layer",), [0.1])
    attrs = {"model": "m", "site": "resid_post", "labels": "l"}
    sizes = {"n_test_texts": 2, "n_classes": 2, "capable": 1.0, "largest_logit": largest_logit}
    return str(used._summary(data, attrs, sizes, 0.0)["finding"])


def told(accuracy: float, baseline: float, control: float) -> str:
    summary = {"model": "m", "site": "resid_post", "labels": "l", "layer": 3, "n_test": 40, "n_test_texts": 20}
    summary |= {"best_baseline": "bag", "bag_accuracy": baseline, "control_accuracy": control} | bounded("accuracy", accuracy)
    return labelled.finding(summary | bounded("gain", accuracy - baseline) | bounded("selectivity", accuracy - control))


def attended(a: float, b: float) -> str:
    """Induction score and its control, of one head on four sequences."""
    loaded, prompts = Mock(spec=Loaded), Mock(spec=PromptSet)
    loaded.name, prompts.name = "m", "p"
    figures = {f"{name}{end}": (("layer", "head"), [[0.3]]) for name in heads.STATISTICS for end in ("", "_uniform")}
    data = xr.Dataset(figures, {"layer": [0], "head": [0]})
    induction = (torch.full((4, 1, 1), a, dtype=torch.float64), torch.full((4, 1, 1), b, dtype=torch.float64))
    return str(heads._summary(loaded, prompts, data, 4, 0.0, induction, 0)["finding"])


def labelled_states(shares: list[tuple[float, float]]) -> str:
    """Of each layer the share between the labels' classes, and that of every permutation."""
    drawn = torch.tensor([[own, *[other] * shape.PERMUTATIONS] for own, other in shares], dtype=torch.float64)
    names = [f"{stem}{suffix}{end}" for stem in shape.FIGURES for suffix in ("", "_no_first") for end in ("", "_low", "_high")]
    names += [f"participation_isotropic{suffix}" for suffix in ("", "_no_first")]
    columns = dict.fromkeys(names, [0.5] * len(shares)) | shape._separation(drawn)
    data = xr.Dataset({name: ("layer", values) for name, values in columns.items()}, {"layer": list(range(len(shares)))})
    labels = Mock(spec=Labelled, classes=("x", "y"), label=torch.tensor([0, 1]))
    return by_word(str(shape._summary(data, {"model": "m", "site": "resid_post"}, (10, 5), list(drawn), labels)["finding"]))


def subject() -> Any:
    """What `collapse` says it is of: a name and a batch of two sequences."""
    found = Mock(spec=Subject, batches=[Mock(x=[0, 1])])
    found.name = "m"
    return found


def collapsed(a: float, b: float) -> str:
    row = {"cos": collapse.FAITHFUL * b / a, "k": 1.0, "cos_kept": 1.0, "dropped": 0.0, "lin": 0.001, "outlier": 1.0}
    return str(collapse._summary(subject(), [0.1], [row], 1e-6)["finding"])


def gated(a: float, b: float) -> str:
    """The gates never close where both predictors lie below them: the claim."""
    row = {"cos": 1.0, "k": 1.0, "cos_kept": 1.0, "dropped": 0.0, "lin": collapse.LIN * b / a, "outlier": 1.0}
    return str(collapse._summary(subject(), [0.1], [row], 1e-6)["finding"])


def mixed(a: float, b: float) -> str:
    influence = {1: (math.e * a, 1.0, ""), 2: (b, 1.0, "")}
    return mixing.falls(influence, mixing.reach(influence)[0])


def signed(a: float, b: float) -> str:
    told = signs._summary({}, [signs.Sign("grid", "a number", a, 2, True, b)])
    return str(told["finding"])


def credited(a: float, b: float) -> str:
    """The claim is that (d) does not fire: the loss falls further against the credit than at random."""
    return "fires" if audit._as_random(np.array([-a]), np.array([-b]))[0] else "falls further"


def tried(a: float, b: float) -> str:
    """The claim is that no other setting is as good: an empty text."""
    return experiments._level([{"best_val": b}, {"best_val": a}], b, 0.0)


def levelling(a: float, b: float) -> str:
    """The claim is that efficiency has a greatest value: an empty text."""
    one = [np.array([value]) for value in (3.0, 1.0, 0.5, a - b, 1e9)]
    return critical._monotone(critical.Saturation(*one, np.array([True])))


def contracting(a: float, b: float) -> str:
    data = xr.Dataset({f"mlp_gain{end}": ("layer", [b / a]) for end in ("", "_low", "_high")})
    return f"contracts in {gains_page._contracting(Result('gains', data, ('layer',), {}, {}), 'mlp_gain')}"


def clustered(a: float, b: float) -> str:
    summary = {"pairwise_cosine_last_layer": a, "pairwise_cosine_first_layer": b} | bounded("pairwise_rises_with_depth", a - b)
    return geometry_page.clustering(Result("geometry", xr.Dataset(), (), summary, {}))


def grown(a: float, b: float) -> str:
    return scaling_page.growth({"alpha": a - b, "ci_low": a - b - 0.01, "ci_high": a - b + 0.01})


def fallen(a: float, b: float) -> str:
    return probe_command.at_the_wall(bounded("drop_after_horizon", a - b))


@dataclass(frozen=True)
class Case:
    """A sentence that claims a difference.

    Attributes:
        says: (treatment, control) -> the sentence.
        claim: what it says, as a pattern, when the treatment is clearly more.
        covers: the generators it goes through, module and function.
        clear: a treatment and a control far apart.
        equal: a figure for both.
    """

    says: Callable[[float, float], str]
    claim: str
    covers: tuple[str, ...]
    clear: tuple[float, float] = (0.8, 0.4)
    equal: float = 0.5


X, G, W = "hooks/interchange/", "hooks/gains/", "hooks/wall/"
CASES = {
    "ablation": Case(ablated, r"costs more than", (f"{X}ablation:finding", f"{X}ablation:_result")),
    "interchange": Case(interchanged, r" imports the donor's answer", (f"{X}programs:finding", f"{X}programs:_summary")),
    "sweep": Case(swept, r"crosses in", (f"{X}programs:_swept_finding", f"{X}programs:_sweep")),
    "patches": Case(patched, r", more than its strongest control", (f"{X}report:finding", f"{X}report:result")),
    "prompts": Case(prompted, r"1 of 1 cells restore", (f"{X}prompts:_finding", f"{X}prompts:result")),
    "ablation of states": Case(
        lambda a, b: states_ablated([(a, b)]), r"\), more than", (f"{X}whole_states:finding", f"{X}whole_states:_summary")
    ),
    "ablation of states, layer": Case(lambda a, b: states_ablated([(b, 0.1), (a, 0.1)]), r"layer one", ()),
    "edits, remove": Case(lambda a, b: edited((a, b), (0.5, 0.5)), r"logits, more than.*;.*; ", (f"{X}used:finding", f"{X}used:_summary")),
    "edits, swap": Case(lambda a, b: edited((0.5, 0.5), (a, b)), r";.*logits, more than", ()),
    "readout": Case(read_out, r"its rule crosses in", (f"{X}readout:finding", f"{X}readout:_summary")),
    "rescue": Case(rescued, r"rescues the answer from", (f"{X}rescue:finding", f"{X}rescue:_result")),
    "geometry": Case(placed, r", rising with depth", (f"{W}geometry:_finding", f"{W}geometry:geometry")),
    "calibration, entropy": Case(
        lambda a, b: calibrated((a, b), (0.1, 0.5)), r"entropy off", (f"{W}calibration:_finding", f"{W}calibration:calibration")
    ),
    "calibration, right": Case(lambda a, b: calibrated((0.01, 0.03), (a, b)), r"calibrated and right\.", ()),
    "evaluation, learnt": Case(
        lambda a, b: evaluated(trained_mae=evaluate.LEARNT_BITS * a / b),
        r"has not learnt",
        ("training/wall/evaluate:_finding", "training/wall/evaluate:evaluate"),
    ),
    "evaluation, wall": Case(lambda a, b: evaluated(wall_ratio=evaluate.WALL_RATIO * a / b), r"shows the wall", ()),
    "evaluation, right": Case(lambda a, b: evaluated(bayes_best_mass=a, bayes_best_posterior=b / evaluate.RIGHT_SHARE), r"and puts", ()),
    "temperature": Case(tempered, r": a temperature recovers", (f"{W}temperature:_finding", f"{W}temperature:temperature")),
    "probes": Case(
        lambda a, b: probed(a, 0.9, b), r"(still|partly) there", ("hooks/probes/report:_finding", "hooks/probes/report:make_result")
    ),
    "probes, exact answer": Case(lambda a, b: probed(a, a, b), r"still there", ()),
    "labels, baseline": Case(
        lambda a, b: told(a, b, 0.5), r"\], more than", ("hooks/probes/labelled:finding", "hooks/probes/labelled:_result")
    ),
    "labels, control": Case(lambda a, b: told(a, 0.5, b), r" and more than", ()),
    "labels, rival": Case(lambda a, b: labelled.strongest({"token_type": b, "bag": a}), r"bag", ()),
    "heads": Case(attended, r"strongest induction score", ("hooks/states/heads:_summary",)),
    "shape": Case(lambda a, b: labelled_states([(a, b)]), r"part the states most", ("hooks/states/shape:_summary",)),
    "shape, layer": Case(lambda a, b: labelled_states([(b, 0.1), (a, 0.1)]), r"at layer one", ()),
    "shape, p": Case(lambda a, b: shape.parting("layer 1", 0.5, 0.4, shape.SIGNIFICANT * b / a), r"part the states most", ()),
    "gains": Case(gained, r"below 1 in 1 of 1", (f"{G}report:_finding", f"{G}report:_summary")),
    "gains of models": Case(loudest, r"loudest in 1 of 1", (f"{G}series:models_finding", f"{G}series:over_models")),
    "scaling": Case(scaled, r"keeps p below", (f"{G}scaling:_finding", f"{G}scaling:scaling")),
    "rescale, layer": Case(costly, r"costs most in layer 5$", (f"{G}rescale:_result",)),
    "rescale, cost": Case(costing, r"costs most", ()),
    "flow": Case(flowed, r"rises again", ("hooks/flow/report:_summary",)),
    "collapse": Case(collapsed, r"falls below", ("hooks/diagnostics/collapse:_summary",)),
    "collapse, gates": Case(gated, r"gates never close", ()),
    "mixing": Case(mixed, r"^below", ("hooks/diagnostics/mixing:summary_of",)),
    "signs": Case(signed, r"1 of 1", ("hooks/diagnostics/signs:_summary",)),
    "audit, nudge": Case(credited, r"falls further", ()),
    "grid": Case(tried, r"^$", ("training/equilibrium/experiments:grid",)),
    "critical size": Case(levelling, r"^$", ()),
    "page of gains": Case(contracting, r"contracts in 1", ()),
    "page of geometry": Case(clustered, r"cluster with depth", ()),
    "page of scaling": Case(grown, r"Gain grows", ()),
    "probe command": Case(fallen, r"it falls by", ()),
}
# Generators that put figures side by side, or print counts and verdicts that are the summary's own.
FIGURES_ONLY = {
    "cli/interchange:_finding": "the sentence is the summary's own",
    f"{W}attention:_summary": "attention on the first token beside the uniform share",
    f"{G}series:over_training": "gains at two steps; the step of the most is findings.foremost's; counts are the parts' own",
    "hooks/attach/modules/watching:result": "means of entropy and of the share on the first token",
    "hooks/gains/meter:_summary": "the last layer's two gains",
    "hooks/probes/bank:_result": "an accuracy beside its control's and the commonest label's",
    "hooks/flow/sheaf:_summary": "a share of heads that is the summary's figure, and energies",
    "hooks/diagnostics/branches:summary_of": "ratios of norms and an entropy",
    "hooks/diagnostics/lr_sweep:_summary": "changes of the loss; the rate of the best is findings.foremost's",
    "hooks/diagnostics/triangulate_report:summary_of": "cosines and sizes",
    "hooks/diagnostics/triangulate_report:_finding": "cosines and sizes",
    "hooks/diagnostics/campaign:_overview": "figures of the parts and their label",
    "hooks/diagnostics/campaign:_finding": "figures of the parts and their label",
    "training/audit/record:_summary": "the verdict and figures beside it",
    "training/audit/record:_finding": "the verdict and figures beside it; its rules are the ledger's",
    "training/audit/record:_together": "counts of verdicts",
    "training/equilibrium/experiments:matched": "losses and signed gaps",
    "training/equilibrium/experiments:gate_study": "shares and losses",
    "training/equilibrium/record:training_result": "a loss and its step",
}


def words(sentence: str) -> str:
    """A sentence without its numbers."""
    return re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?%?", "#", sentence)


@pytest.mark.parametrize("name", CASES)
def test_what_differs_by_rounding_is_not_said_to_differ(name):
    case = CASES[name]
    said = [case.says(case.equal * factor, case.equal) for factor in SLIGHT] + [
        case.says(case.equal, case.equal * factor) for factor in SLIGHT
    ]
    assert not any(re.search(case.claim, sentence) for sentence in said)
    assert len({words(sentence) for sentence in said}) == 1


@pytest.mark.parametrize("name", CASES)
def test_a_clear_difference_is_said(name):
    case = CASES[name]
    assert re.search(case.claim, case.says(*case.clear))
    assert not re.search(case.claim, case.says(*reversed(case.clear)))


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function of the package but the ledgers', as folder/module:name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if not where.startswith("claims/"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef):
                    yield f"{where}:{node.name}", node


def writes_a_finding(function: ast.FunctionDef) -> bool:
    """Whether it is named for one, or puts one into a summary."""

    def is_finding(node: ast.expr | None) -> bool:
        return isinstance(node, ast.Constant) and node.value == "finding"

    for node in ast.walk(function):
        if isinstance(node, ast.Dict) and any(map(is_finding, node.keys)):
            return True
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and is_finding(node.slice):
            return True
    return function.name.strip("_").endswith("finding")


def test_every_generator_of_a_finding_is_in_a_table():
    covered = {one for case in CASES.values() for one in case.covers} | set(FIGURES_ONLY)
    found = {where for where, function in functions() if writes_a_finding(function)}
    assert found == covered


ORDERED = (ast.Lt, ast.Gt, ast.LtE, ast.GtE)
# Words that a bare comparison may choose: how a number is written, how many there are, faults of the machine, guards.
BARE = {
    "findings:side": "the comparison itself",
    "cli/audit_tables:_table": "how a column is set",
    "cli/audit_tables:figure": "how a number is written",
    "cli/calibration:_figure": "how a number is written",
    "cli/evaluate:_with_interval": "how a number is written",
    "cli/gains_tables:_bar": "on which side of 1 a bar is drawn",
    "cli/mixing:_losses": "how a range is written",
    "cli/probe:_cell": "bold, where the interval is above 0",
    "cli/scaling:_without": "a colour, where p is 0.05 or more",
    "cli/temperature:_temperature": "how a number is written",
    "gallery/exhibits/scaling:_without": "a colour, where p is 0.05 or more",
    "gallery/exhibits/table:tables": "how many rows",
    "gallery/exhibits/triangulate:_self": "how many checkpoints",
    "gallery/exhibits/triangulate:_all": "how many batches",
    "gallery/glance:_bars": "on which side of its base a bar is drawn",
    "gallery/render:number": "how a number is written",
    "hooks/diagnostics/mixing:_doubt": "a guard: half of a nudge moves half as much",
    "hooks/diagnostics/triangulate:usual": "how large a model is",
    "hooks/gains/critical:critical_size": "how many resamples",
    "hooks/gains/critical:_monotone": "at which edge of the grid of rates a fit ends",
    "hooks/gains/efficiency:unigram": "how many tokens",
    "hooks/gains/scaling:size_text": "how a number is written",
    "hooks/interchange/prompts:_verdict": "how many pairs",
    "hooks/interchange/request:__post_init__": "a check of options: how many layers are patched at once",
    "hooks/wall/calibration:_finding": "how a number is written",
    "training/audit/diagnostics:_cause": "a label of the summary by the audit's thresholds, which are printed beside it",
    "training/engines/local:why": "a fault of the machine",
    "training/equilibrium/control:classify": "a label of the summary by the study's thresholds",
    "training/equilibrium/control:see": "a fuse",
}


def is_text(node: ast.expr) -> bool:
    """A string, or what is put together of one."""
    if isinstance(node, ast.IfExp):
        return is_text(node.body) or is_text(node.orelse)
    if isinstance(node, ast.BinOp):
        return is_text(node.left) or is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def is_ordered(test: ast.expr) -> bool:
    """Whether a condition holds figures against each other; counts of things do not matter here."""
    compares = [node for node in ast.walk(test) if isinstance(node, ast.Compare) and any(isinstance(op, ORDERED) for op in node.ops)]
    return any(not any(isinstance(part, ast.Call) and ast.unparse(part.func) == "len" for part in ast.walk(one)) for one in compares)


def chooses_words(function: ast.FunctionDef) -> bool:
    """Whether a bare comparison picks one of several texts."""
    for node in ast.walk(function):
        if isinstance(node, ast.IfExp) and is_ordered(node.test) and is_text(node):
            return True
        if isinstance(node, ast.If) and is_ordered(node.test):
            told = [
                part.value for part in node.body + node.orelse if isinstance(part, (ast.Return, ast.Assign, ast.AugAssign)) and part.value
            ]
            if any(map(is_text, told)):
                return True
    return False


def test_no_word_is_chosen_by_a_bare_comparison():
    assert {where for where, function in functions() if chooses_words(function)} == set(BARE)


def test_an_edit_is_held_to_the_rounding_of_the_logits_it_subtracts():
    """Two logits of 100 that are told apart only by their last digits, though one effect is ten times the other."""
    assert "more than" in edited((1e-3, 1e-4), (0.5, 0.5), 1.0).replace("no more than", "")
    assert "more than" not in edited((1e-3, 1e-4), (0.5, 0.5), 100.0).replace("no more than", "")


def test_states_that_do_not_differ_are_not_said_to_be_parted():
    """A layer where every labelled token has one state has no share: it neither stands out nor hides one that does."""
    same = shape.between_shares(torch.full((6, 4), 0.1), torch.tensor([[0, 0, 0, 1, 1, 1]] * 3), 2)
    assert same.isnan().all()
    assert "do not differ" in labelled_states([(math.nan, math.nan)])
    assert "at layer one" in labelled_states([(math.nan, math.nan), (0.8, 0.4)])
    assert "nowhere" in labelled_states([(math.nan, math.nan), (0.4, 0.4)])


def test_an_ablation_whose_arms_differ_by_rounding_costs_no_more():
    """What another processor's kernels do to the whole state's ablation: every figure moves in its last digits."""
    draws = torch.rand(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws /= draws.sum(-1, keepdim=True)
    base = {name: torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for name in ablation.METRICS}
    for factor in (1 - 2e-7, 1 + 2e-7):
        arms = {"": base, "_base": base, "_span": {name: values * factor for name, values in base.items()}, "_whole": base}
        figures = ablation._figures(arms, draws)
        assert abs(figures["excess"]) > 0.0
        assert figures["excess_low"] > 0.0 if factor > 1 else figures["excess_high"] < 0.0  # the interval alone would say otherwise
        told = {"run": "c0", "subspace": "random:24", "dims": 24.0, "site": "resid_pre", "layer": 0, "index": 3, "method": "mean"}
        assert "costs no more than random spans" in ablation.finding(figures | told | {"subspace_variance": 1.0, "span_variance": 1.0})
