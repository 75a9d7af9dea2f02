"""Is what a probe reads used? The span a probe of labels reads is edited in texts it was not fitted on, and the model's answer is read.

Edits at the labelled token: `remove` puts the state's part in the span to its mean, `swap` to another label's mean. Effects are on the
model's own logits of the labels' answer tokens. Beside each, a change as large in random directions, and one as large within spans
fitted on shuffled labels; the strongest draw of them is the control. A probe finds what is there, an edit what is used.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.findings import Side, foremost, rounding, side
from wallprobe.hooks.attach import cache, gathering
from wallprobe.hooks.attach.labelled import Labelled
from wallprobe.hooks.probes import arrays
from wallprobe.hooks.probes import fit as probes_fit
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

KIND = "readout_labels"
EDITS = ("remove", "swap")
FIGURES = 1 << 25  # logits of a pass at most
ARMS: Mapping[str, str] = {
    "": "in the span that the probe reads",
    "_random": f"as large in a random direction, the strongest of {arrays.DRAWS} draws",
    "_shuffled": f"as large in a span fitted on shuffled labels, the strongest of {arrays.DRAWS} draws",
}


@dataclass(frozen=True)
class Spans:
    """What is edited at one layer.

    Attributes:
        axes: orthonormal rows: of the labels, then of each draw of shuffled ones.
        mean: mean state of the training texts, classes weighted alike.
        of_class: mean state of each class.
        loss: validation loss of the probe.
    """

    axes: Float[Tensor, "draw dim width"]
    mean: Float[Tensor, " width"]
    of_class: Float[Tensor, "class width"]
    loss: float


def answers_of(loaded: models.Loaded, labelled: Labelled, given: Mapping[str, str] | None = None) -> Int[Tensor, " class"]:
    """The token that stands for each label.

    Args:
        loaded: the model.
        labelled: texts and labels.
        given: label -> text of its answer; by default the label itself after a blank. Of a run, token ids.

    Raises:
        ConfigError: for a label that is not there or has no answer, or two labels with one token.
    """
    given = dict(given or {})
    strange = [label for label in given if label not in labelled.classes]
    if strange:
        raise ConfigError(f"--answers name '{strange[0]}', which is no label of {labelled.name}; there are: {', '.join(labelled.classes)}")
    bounds, found = models.limits(loaded), list[int]()
    for label in labelled.classes:
        text = given.get(label, label if loaded.tokenizer is None else f" {label}")
        if loaded.tokenizer is not None:
            ids = list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
        elif text.strip().isdecimal():
            ids = [int(text)]
        else:
            raise ConfigError(f"{loaded.name} has no tokenizer, and the answer '{text}' is no token id; give --answers {label}=3,...")
        bounds.check(loaded.name, f"the answer '{text}'", ids)
        found.append(ids[0])
    if len(set(found)) < len(found):
        twice = next(label for place, label in enumerate(labelled.classes) if found[place] in found[:place])
        raise ConfigError(f"label '{twice}' begins with the token of another label's answer; give --answers LABEL=TEXT,... that differ")
    return torch.tensor(found)


def spans(
    x: Float[Tensor, "row width"], labels: Int[Tensor, " row"], classes: int, division: arrays.Division, controls: Int[Tensor, "draw row"]
) -> Spans:
    """The span that a softmax probe reads, in the states' own coordinates, and those of shuffled labels.

    Args:
        x: states at the labelled tokens.
        labels: class of each row.
        classes: how many.
        division: rows to fit on; test rows are not looked at.
        controls: shuffled labels.
    """
    order, fitted = division.order, len(division.train) + len(division.validation)
    problems = torch.cat([labels[None], controls])[:, order]
    given = probes_fit.features(x[None, order], len(division.train), len(division.validation))
    fit = probes_fit.softmax_path(given, problems[None, :, :fitted], classes, probes_fit.STRENGTHS)
    train = x[division.train]
    spread = train.std(0, correction=0)
    scale = torch.where(spread <= probes_fit.FLAT * torch.finfo(x.dtype).eps * train.mean(0).abs(), 0.0, 1 / spread)
    weights = fit.weights[0, :, :, :-1] * scale
    axes = torch.linalg.svd((weights - weights.mean(1, keepdim=True)).double(), full_matrices=False).Vh[:, : classes - 1]
    of_class = torch.stack([train[labels[division.train] == number].mean(0) for number in range(classes)])
    return Spans(axes.float(), of_class.mean(0), of_class, float(fit.loss[0, 0]))


def used(
    loaded: models.Loaded,
    labelled: Labelled,
    *,
    answers: Mapping[str, str] | None = None,
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "cpu",
    follow: gathering.Follow = gathering.silent,
) -> Result:
    """Edit what a probe of the labels reads, a layer at a time, and read the model's answer at the labelled token.

    Args:
        loaded: the model.
        labelled: texts with one label each.
        answers: as `answers_of`.
        site: one of `models.SITES`.
        layers: None for all; of `resid_post` then also what enters the first block (layer -1).
        seed: of the split, the controls and the bootstrap.
        device: of the model, for the manifest.
        follow: told (layers done, of all).

    Returns:
        Result of kind "readout_labels", table over layer x edit. An effect is how much the logit of a text's own answer falls against the
        others' (`remove`, their mean) or against that of the label put in (`swap`).

    Raises:
        ConfigError: for labels a token, answers that cannot be told apart, or a label that too few texts have.
        InstrumentError: if a hook did not fire exactly once, no edit changed anything (a layer where none did has NaN), or
            putting states back changed something.
    """
    watch = Stopwatch()
    if labelled.by_token:
        raise ConfigError(f"{labelled.name} has a label a token; the model's answer is read once a text, give one label each")
    hooks, tokens = gathering.hooks_of(loaded, site, layers), answers_of(loaded, labelled, answers)
    labels, groups, classes = labelled.label, labelled.groups, len(labelled.classes)
    arrays.check_classes(labels, groups, labelled.classes)
    division = arrays.divide(labels, groups, seed)
    controls = arrays.control_labels(labels, groups, None, "shuffled", seed)
    x = gathering.states_at(loaded, labelled.tokens, labelled.row, labelled.index, list(hooks.values()))
    by_text = arrays.ByText.of(groups[division.test], seed)
    columns: dict[str, list[list[float]]] = {}
    losses: list[float] = []
    right, largest, size = 0.0, 0.0, 0.0
    measured: list[dict[str, Tensor]] = []
    for place, (layer, hook) in enumerate(hooks.items()):
        span = spans(x[place], labels, classes, division, controls)
        losses.append(span.loss)
        work = _Layer(loaded, labelled, division.test, hook, layer, x[place], span, tokens, seed)
        effects, right, changed, logit = work.measure()
        measured.append(effects)
        largest, size = max(largest, changed), max(size, logit)
        follow(place + 1, len(hooks))
    for place, effects in enumerate(measured):
        for edit in EDITS:
            for name, value in _cell(effects, edit, by_text, rounding(size)).items():
                columns.setdefault(name, [[] for _ in hooks])[place].append(value)
    if not np.isfinite(columns["effect"]).any():
        raise InstrumentError(
            f"the states at {site} do not differ between texts, no edit changed anything; give other layers or another index"
        )
    variables: dict[str, tuple[tuple[str, ...], Any, str, str]] = {
        name: (("layer", "edit"), np.array(values), "logits", _words(name)) for name, values in columns.items()
    }
    variables["validation_loss"] = (("layer",), np.array(losses), "nats", "of the probe, on the texts that chose its penalty")
    told = ", ".join(f"{label}: {token}" for label, token in zip(labelled.classes, tokens.tolist(), strict=True))
    attrs = {"model": loaded.name, "site": site, "labels": labelled.name, "answers": told}
    data = dataset({"layer": list(hooks), "edit": list(EDITS)}, variables, **attrs)
    manifest = provenance(
        config=attrs | {"layers": list(hooks), "seed": seed, "weight_hash": loaded.weight_hash, "data_hash": labelled.data_hash},
        device=device,
        dtype="float32 model and probes, float64 scores",
        watch=watch,
        subject=loaded.name,
        weight_hash=loaded.weight_hash,
        weight_processing=loaded.processing,
        seeds={"texts": seed},
    )
    sizes = {"n_test_texts": len(torch.unique(groups[division.test])), "n_classes": classes, "capable": right, "largest_logit": size}
    return Result(KIND, data, ("layer", "edit"), _summary(data, attrs, sizes, largest), manifest)


@dataclass(frozen=True)
class _Layer:
    """The edits of one layer, all arms of which go through the model side by side."""

    loaded: models.Loaded
    labelled: Labelled
    test: Tensor
    hook: str
    layer: int
    states: Tensor
    span: Spans
    answers: Tensor
    seed: int

    @property
    def arms(self) -> list[str]:
        draws = range(arrays.DRAWS)
        return [f"{edit}{arm}" for edit in EDITS for arm in ("", *(f"_random{k}" for k in draws), *(f"_shuffled{k}" for k in draws))]

    def measure(self) -> tuple[dict[str, Tensor], float, float, float]:
        """Effects of each arm on each test text; share of them that the model answers by itself; what putting states back changed; the
        largest logit of an answer, in magnitude."""
        places = self.test.tolist()
        rows = [self.labelled.tokens[int(self.labelled.row[place])] for place in places]
        most = max(1, FIGURES // (models.limits(self.loaded).vocabulary * len(self.arms)))
        found = {arm: torch.zeros(len(places), dtype=torch.float64) for arm in self.arms}
        right, self_change, size, moved = 0, 0.0, 0.0, dict.fromkeys(EDITS, 0.0)
        for first, (some, tokens) in enumerate(gathering.by_length(rows, most)):
            at = torch.tensor([places[one] for one in some])
            index, own, label = self.labelled.index[at], self.states[at], self.labelled.label[at]
            before = self._answers(cache.run(self.loaded, tokens, {}), index)
            right += int((before.argmax(1) == label).sum())
            if not first:
                self_change = self._put_back(tokens, index)
            made = self._edits(own, label, places, some)
            moved = {edit: max(moved[edit], float((made[edit] - own).abs().max())) for edit in EDITS}
            said = self._answers(
                self._pass(tokens.repeat(len(self.arms), 1), index.repeat(len(self.arms)), torch.cat([made[arm] for arm in self.arms])),
                index.repeat(len(self.arms)),
            )
            size = max(size, float(before.abs().max()), float(said.abs().max()))
            for arm, after in zip(self.arms, torch.split(said, len(some)), strict=True):
                found[arm][some] = self._lead(before, label, arm) - self._lead(after, label, arm)
        for arm in self.arms:  # where the states do not differ, as before the first block at one token, there is nothing to edit
            if moved["swap" if arm.startswith("swap") else "remove"] == 0.0:
                found[arm].fill_(math.nan)
        return found, right / len(places), self_change, size

    def _lead(self, logits: Float[Tensor, "text class"], label: Int[Tensor, " text"], arm: str) -> Float[Tensor, " text"]:
        """By how much the own answer leads: the mean of the others, or the one that is swapped in."""
        own = logits.gather(1, label[:, None])[:, 0]
        if arm.startswith("swap"):
            return own - logits.gather(1, self._other(label)[:, None])[:, 0]
        return own - (logits.sum(1) - own) / (logits.shape[1] - 1)

    def _other(self, label: Int[Tensor, " text"]) -> Int[Tensor, " text"]:
        """The label that is swapped in: the next one."""
        return (label + 1) % len(self.answers)

    def _edits(self, own: Tensor, label: Tensor, places: list[int], some: list[int]) -> dict[str, Tensor]:
        """What each arm puts in place of each text's state."""
        made: dict[str, Tensor] = {}
        for edit, target in (("remove", self.span.mean.expand_as(own)), ("swap", self.span.of_class[self._other(label)])):
            changes = [((target - own) @ axes.T) @ axes for axes in self.span.axes]
            size = torch.linalg.vector_norm(changes[0], dim=1, keepdim=True)
            made[edit] = own + changes[0]
            for draw in range(arrays.DRAWS):
                drawn = torch.stack(
                    [
                        torch.randn(own.shape[1], generator=generator(self.seed, "edit direction", self.layer, edit, draw, places[one]))
                        for one in some
                    ]
                )
                made[f"{edit}_random{draw}"] = own + size * torch.nn.functional.normalize(drawn, dim=1)
                made[f"{edit}_shuffled{draw}"] = own + size * torch.nn.functional.normalize(changes[1 + draw], dim=1)
        return made

    def _answers(self, logits: Tensor, index: Tensor) -> Float[Tensor, "text class"]:
        rows = torch.arange(len(index), device=logits.device)
        return logits[rows, index.to(logits.device)][:, self.answers.to(logits.device)].cpu().double()

    def _pass(self, tokens: Tensor, index: Tensor, target: Tensor | None) -> Tensor:
        """Logits with the target at the labelled tokens; None puts back what stands there."""
        fired: list[str] = []

        def patch(value: Tensor, hook: Any) -> Tensor:
            fired.append(self.hook)
            made = value.clone(memory_format=torch.contiguous_format)
            if target is not None:
                made.view(*made.shape[:2], -1)[torch.arange(len(index)), index.to(made.device)] = target.to(made)
            return made

        said = cache.run(self.loaded, tokens, {self.hook: patch})
        if len(fired) != 1:
            raise InstrumentError(f"hook {self.hook} of {self.loaded.name} fired {len(fired)} times in one forward pass")
        return said

    def _put_back(self, tokens: Tensor, index: Tensor) -> float:
        """What the states put back changed; it must be nothing, to the bit."""
        changed = float((self._pass(tokens, index, None) - cache.run(self.loaded, tokens, {})).abs().max())
        if changed != 0.0:
            raise InstrumentError(f"putting the states back at {self.hook} changed the logits by {changed}")
        return changed


def _strongest(arms: Sequence[Tensor], noise: float) -> Tensor:
    """The first whose mean no other's is above by more than rounding."""
    return arms[foremost([float(one.mean()) for one in arms], noise) or 0]


def _cell(effects: Mapping[str, Tensor], edit: str, by_text: arrays.ByText, noise: float) -> dict[str, float]:
    """Effect and controls of one edit with bounds over texts, and the effect beyond the stronger control."""
    arms = {"": effects[edit]}
    for kind in ("_random", "_shuffled"):
        arms[kind] = _strongest([effects[f"{edit}{kind}{draw}"] for draw in range(arrays.DRAWS)], noise)
    arms["_control"] = _strongest([arms["_random"], arms["_shuffled"]], noise)
    arms["_excess"] = arms[""] - arms["_control"]
    made: dict[str, float] = {}
    for suffix, values in arms.items():
        for end, figure in zip(("", "_low", "_high"), by_text.figures(values), strict=True):
            made[f"effect{suffix}{end}"] = float(figure)
    return made


def _words(name: str) -> str:
    suffix = name.removeprefix("effect").removesuffix("_low").removesuffix("_high")
    more = {"_control": "the stronger of the two controls", "_excess": "beyond the stronger of the two controls"}
    return f"how much the own answer's lead falls: {(dict(ARMS) | more)[suffix]}"


def _summary(data: Any, attrs: Mapping[str, str], sizes: Mapping[str, Any], self_change: float) -> dict[str, Any]:
    """Of the layer that the probe's validation loss chose."""
    edited = np.isfinite(data["effect"].values).all(1)
    place = foremost(np.where(edited, -data["validation_loss"].values, np.nan).tolist()) or 0
    summary: dict[str, Any] = {**attrs, **sizes, "layer": int(data["layer"][place]), "self_patch_max_change": self_change}
    for at, edit in enumerate(EDITS):
        for name in ("effect", *(f"effect{suffix}" for suffix in ("_random", "_shuffled", "_control", "_excess"))):
            for end in ("", "_low", "_high"):
                summary[f"{edit}_{name}{end}"] = float(data[f"{name}{end}"][place, at])
    return summary | {"finding": finding(summary)}


def against_control(cell: Any, largest_logit: float, edit: str = "") -> Side:
    """On which side of the stronger control does an effect lie?

    Args:
        cell: figures by name.
        largest_logit: the size of what was subtracted, whose rounding an effect carries.
        edit: what the names begin with.
    """
    names = ("effect", "effect_control", "effect_excess_low", "effect_excess_high")
    effect, control, low, high = (float(cell[f"{edit}{name}"]) for name in names)
    return side(effect, control, (low, high), rounding(largest_logit))


def finding(summary: Mapping[str, Any]) -> str:
    """One plain sentence: whether the answer follows what the probe reads, at the layer that the probe's validation loss chose."""
    where = "what enters the first block" if summary["layer"] == gathering.EMBEDDING else f"layer {summary['layer']}"
    told = []
    for edit, words in (("remove", "taking out"), ("swap", "swapping")):
        effect, control = summary[f"{edit}_effect"], summary[f"{edit}_effect_control"]
        found = against_control(summary, summary["largest_logit"], f"{edit}_")
        more = {"above": "more than", "below": "less than", "level": "no more than"}[found]
        told.append(f"{words} what the probe reads lowers the own answer's lead by {effect:.3f} logits, {more} the control ({control:.3f})")
    return (
        f"{summary['model']}, {where} ({summary['site']}), {summary['labels']}: {'; '.join(told)}; {summary['n_test_texts']} held-out "
        f"texts, {summary['capable']:.0%} of which the model answers by itself."
    )
