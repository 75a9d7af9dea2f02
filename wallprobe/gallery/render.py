"""Templates, kinds and sealed JSON: what every page needs. Imports no xarray, so that an index can be made without it."""

import functools
import json
import math
from typing import Any

import jinja2
from markupsafe import Markup

from wallprobe.gallery import glossary

KINDS = {
    "claims": ("Ledger", "Which of the published claims hold here, and which do not?"),
    "interchange": ("Interchange", "Does the receiving model carry the donor's rule, or only its answer?"),
    "sweep": ("Interchange sweeps", "Where in the network, over every layer, index and site, does a donor's answer get through?"),
    "prompts": ("Prompt interchange", "Which activation, on which token, carries a language model's answer?"),
    "readout": ("Readout by depth", "How deep must a donor's state go in before the receiver reads it, and does a change of basis help?"),
    "rescue": ("Rescue", "Does a supervised state give its answer where no supervision reached?"),
    "ablation": ("Ablation", "What is left of the answer without this part of the state?"),
    "eval": ("Evaluation", "Where does the wall stand, and is the mass on the right token?"),
    "calibration": ("Calibration", "As sure as it should be, and sure of the right token?"),
    "temperature": ("Temperature", "Can any temperature recover the exact answer?"),
    "geometry": ("Geometry", "Where do the states behind the wall lie?"),
    "probe": ("Probes", "What can a linear map read from the states, more than from shuffled labels?"),
    "gains": ("Gains", "How loud is each layer?"),
    "gains_models": ("Gains over models", "Where in the depth is each model loud?"),
    "gains_training": ("Gains over training", "When did the loud layer become loud?"),
    "scaling": ("Scaling law", "Does the last MLP grow louder with size, and how sure is that?"),
    "flow": ("Flow", "What would the model say after each layer?"),
    "maps": ("Restriction maps", "Does attention shrink what it carries?"),
    "rescale": ("Scaled sub-layers", "Does the loud layer matter?"),
    "audit": ("Audit", "Is that alignment figure a measurement at all?"),
    "attention": ("Attention", "Where does each head look?"),
    "campaign": ("Campaign", "Why does training stop here: the rule, the architecture, or its controller?"),
    "signs": ("Signs", "Which kind of plateau do the numbers look like?"),
    "triangulate": ("Triangulation", "Is an estimated gradient the gradient?"),
    "lr_sweep": ("Learning rates", "What does one step along each gradient buy?"),
    "branches": ("Branches", "How much does each branch add, and how wide does attention look?"),
    "mixing": ("Mixing", "How far back does a token still matter?"),
    "collapse": ("Collapse", "How hard a nudge does the estimate stand?"),
    "matched": ("Matched arms", "Is it the architecture, or the rule?"),
    "gate": ("Validity gate", "When is each arm first allowed to learn?"),
    "grid": ("Controller grid", "Does another floor, target or ceiling help, beyond the seeds' noise?"),
    "equilibrium": ("Equilibrium training", "How did loss, residual and contraction go?"),
    "run": ("Runs", "What was trained, how the loss fell, and what was measured of it."),
}


def kind_title(kind: str) -> tuple[str, str]:
    """Heading and question of a kind; a plugin's kind is its own heading."""
    return KINDS.get(kind, (kind[:1].upper() + kind[1:], ""))


def kind_order(kind: str) -> tuple[int, str]:
    """Sorts kinds as `KINDS` lists them, plugins' behind them by name, runs last."""
    known = list(KINDS)
    return (len(known) + 1 if kind == "run" else known.index(kind) if kind in known else len(known), kind)


@functools.cache
def environment() -> jinja2.Environment:
    """The templates, with autoescape always on."""
    loader = jinja2.PackageLoader("wallprobe.gallery", "templates")
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"number": number, "terms": glossary.linked, "key_terms": glossary.linked_key}
    return made


def number(value: object) -> str:
    """A figure for people: four significant digits, no trailing noise; an en dash for what is not there."""
    if hasattr(value, "dtype") and hasattr(value, "item"):
        value = value.item()  # numpy's, told without importing it
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        size = abs(value)
        return f"{value:.3e}" if size and (size < 1e-4 or size >= 1e6) else f"{value:.4g}"
    return str(value)


def sealed(value: Any) -> Markup:
    """JSON values as text that cannot leave the `<script>` it stands in, whether that holds JSON or a program.

    Args:
        value: JSON values only (see `wallprobe.store.results.plain`).
    """
    dumped = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for sign, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        dumped = dumped.replace(sign, escape)
    return Markup(dumped)
