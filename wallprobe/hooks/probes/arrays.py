"""Probes of any activations and labels: splits that share no text, control labels, baselines, held-out accuracy with an interval.

Selectivity is accuracy minus that of the same probe on control labels, fitted and scored on the same places (Hewitt and Liang 2019,
arXiv:1909.03368): labels shuffled over texts, or one random label a type of token, which only a probe that memorises can tell.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from wallprobe import stats
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.probes import fit as probes_fit
from wallprobe.rng import generator

CONTROLS = ("shuffled", "types")
DRAWS = 3  # of control labels; one alone may be lucky
LEAST = 8  # texts of a class: five to fit, one to choose the penalty, two to score
TRAIN, VALIDATION = 0.625, 0.125  # of the texts; the rest is the test
WORDS = 512  # types of token in the bag
Follow = Callable[[int, int], None]


@dataclass(frozen=True)
class Division:
    """Rows to fit on, to choose the penalty on, and to score; no text is in two of them."""

    train: Int[Tensor, " train"]
    validation: Int[Tensor, " validation"]
    test: Int[Tensor, " test"]

    @property
    def order(self) -> Int[Tensor, " row"]:
        """All rows: training, validation, test."""
        return torch.cat([self.train, self.validation, self.test])

    def check(self, groups: Int[Tensor, " row"]) -> None:
        """Refuse a text on two sides.

        Raises:
            InstrumentError: if there is one.
        """
        sides = [set(groups[part].tolist()) for part in (self.train, self.validation, self.test)]
        if any(one & other for place, one in enumerate(sides) for other in sides[place + 1 :]):
            raise InstrumentError("a text is on two sides of the split; accuracy would not be held out")


@dataclass(frozen=True)
class Held:
    """Held-out hits of probes.

    Attributes:
        hits: on the labels.
        control_hits: on each draw of control labels, mean over draws.
        loss: validation loss in nats, by which a place is chosen without looking at the test.
        strength: of the penalty.
        converged: whether every fit of the place was.
    """

    hits: Bool[Tensor, "place test"]
    control_hits: Float[Tensor, "place test"]
    loss: Float[Tensor, " place"]
    strength: Float[Tensor, " place"]
    converged: Bool[Tensor, " place"]


def check_classes(labels: Int[Tensor, " row"], groups: Int[Tensor, " row"], names: Sequence[str], least: int = LEAST) -> None:
    """Refuse labels that too few texts have.

    Args:
        labels: class of each row.
        groups: text of each row.
        names: of the classes.
        least: texts a class.

    Raises:
        ConfigError: naming the rarest.
    """
    if len(names) < 2:
        raise ConfigError("there is one label; give two or more")
    counts = [len(torch.unique(groups[labels == number])) for number in range(len(names))]
    rarest = min(range(len(names)), key=lambda number: counts[number])
    if counts[rarest] < least:
        raise ConfigError(
            f"label '{names[rarest]}' is in {counts[rarest]} different texts, too few to fit and to score; give at least {least} of each"
        )


def divide(labels: Int[Tensor, " row"], groups: Int[Tensor, " row"], seed: int) -> Division:
    """5/8 of the texts to fit, 1/8 to choose the penalty, 1/4 to score; drawn within the texts of each label, the rarest label first.

    Args:
        labels: class of each row.
        groups: text of each row; all rows of one are on one side.
        seed: of the draw.

    Raises:
        ConfigError: if a label is missing on a side that needs it.
    """
    members: dict[int, set[int]] = {}
    for label, group in zip(labels.tolist(), groups.tolist(), strict=True):
        members.setdefault(label, set()).add(group)
    side: dict[int, int] = {}
    rng = generator(seed, "probe texts")
    for label in sorted(members, key=lambda one: (len(members[one]), one)):
        own = torch.tensor(sorted(members[label] - side.keys()), dtype=torch.int64)
        drawn = own[torch.randperm(len(own), generator=rng)].tolist()
        first = round(len(drawn) * TRAIN)
        second = first + max(round(len(drawn) * VALIDATION), 1 if len(drawn) > 2 else 0)
        side |= {group: 0 if place < first else 1 if place < second else 2 for place, group in enumerate(drawn)}
    where = torch.tensor([side[group] for group in groups.tolist()])
    parts = [(where == part).nonzero()[:, 0] for part in range(3)]
    for part, what in ((parts[0], "to fit on"), (parts[2], "to score on")):
        absent = set(members) - set(labels[part].tolist())
        if absent:
            raise ConfigError(
                f"with seed {seed}, label {min(absent)} (in order) falls in no text {what}; give more texts, or another --seed"
            )
    if not len(parts[1]):
        raise ConfigError("no text is left to choose the penalty on; give more texts")
    found = Division(*parts)
    found.check(groups)
    return found


def control_labels(
    labels: Int[Tensor, " row"], groups: Int[Tensor, " row"], types: Int[Tensor, " row"] | None, control: str, seed: int
) -> Int[Tensor, "draw row"]:
    """Labels that say nothing about the activations.

    Args:
        labels: class of each row.
        groups: text of each row.
        types: type of token of each row, for "types".
        control: "shuffled": the labels in another order, over whole texts where each text has one label; "types": one random label a
            type, drawn from the labels there are.
        seed: of the draws.

    Raises:
        ConfigError: for another control, or "types" without types.
    """
    if control not in CONTROLS:
        raise ConfigError(f"control '{control}' is none of {', '.join(CONTROLS)}")
    rng = generator(seed, "probe control", control)
    if control == "types":
        if types is None:
            raise ConfigError("control 'types' needs the type of each row; give types, or control 'shuffled'")
        _, number = torch.unique(types, return_inverse=True)
        picked = torch.randint(len(labels), (DRAWS, int(number.max()) + 1), generator=rng)
        return labels[picked][:, number]
    known, number = torch.unique(groups, return_inverse=True)
    of_text = torch.zeros(len(known), dtype=labels.dtype).scatter_(0, number, labels)
    orders = torch.stack([torch.randperm(len(known), generator=rng) for _ in range(DRAWS)])
    if bool((of_text[number] == labels).all()):
        return of_text[orders][:, number]
    return torch.stack([labels[torch.randperm(len(labels), generator=rng)] for _ in range(DRAWS)])


def held_out(
    x: Float[Tensor, "place row width"],
    labels: Int[Tensor, " row"],
    classes: int,
    division: Division,
    controls: Int[Tensor, "draw row"],
    follow: Follow = lambda done, total: None,
) -> Held:
    """Softmax probes of every place, of the labels and of each draw of control labels, in one batched solve.

    Args:
        x: activations.
        labels: class of each row.
        classes: how many.
        division: of the rows.
        controls: control labels.
        follow: told (places done, of all).
    """
    order, fitted = division.order, len(division.train) + len(division.validation)
    problems = torch.cat([labels[None], controls])[:, order]
    hits, losses, strengths, converged = [], [], [], []
    for some, given in probes_fit.in_chunks(x, len(division.train), len(division.validation), order=order):
        cells = some.stop - some.start
        fit = probes_fit.softmax_path(given, problems[:, :fitted].expand(cells, -1, -1), classes, probes_fit.STRENGTHS)
        hits.append(probes_fit.best(fit.weights, given.columns[..., fitted:]) == problems[:, fitted:])
        losses.append(fit.loss[:, 0])
        strengths.append(fit.strength[:, 0])
        converged.append(fit.converged.all(1))
        follow(some.stop, len(x))
    right = torch.cat(hits)
    return Held(right[:, 0], right[:, 1:].double().mean(1), torch.cat(losses), torch.cat(strengths), torch.cat(converged))


def majority(labels: Int[Tensor, " row"], division: Division) -> Bool[Tensor, " test"]:
    """Hits of the label that most training rows have."""
    return labels[division.test] == labels[division.train].bincount().argmax()


def by_type(labels: Int[Tensor, " row"], types: Int[Tensor, " row"], division: Division) -> Bool[Tensor, " test"]:
    """Hits of the label that the same type of token has most often in training; of an unseen one the majority's."""
    known, number = torch.unique(types, return_inverse=True)
    classes = int(labels.max()) + 1
    counts = torch.zeros(len(known), classes)
    counts.index_put_((number[division.train], labels[division.train]), torch.ones(len(division.train)), accumulate=True)
    counts += labels[division.train].bincount(minlength=classes) / (10.0 * len(labels))  # breaks ties, and speaks where nothing was seen
    return labels[division.test] == counts.argmax(1)[number[division.test]]


def bag(labels: Int[Tensor, " row"], prefixes: Sequence[Sequence[int]], classes: int, division: Division) -> Bool[Tensor, " test"]:
    """Hits of a softmax probe on how often each token occurs up to the place, of the `WORDS` commonest ones of the training texts."""
    counts: dict[int, int] = {}
    for row in division.train.tolist():
        for token in set(prefixes[row]):
            counts[token] = counts.get(token, 0) + 1
    kept = {token: place for place, token in enumerate(sorted(counts, key=lambda one: (-counts[one], one))[:WORDS])}
    x = torch.zeros(1, len(prefixes), max(len(kept), 1))
    for row, prefix in enumerate(prefixes):
        for token in prefix:
            if token in kept:
                x[0, row, kept[token]] += 1
    order, fitted = division.order, len(division.train) + len(division.validation)
    ((_, given),) = probes_fit.in_chunks(x, len(division.train), len(division.validation), order=order)
    fit = probes_fit.softmax_path(given, labels[order][None, None, :fitted], classes, probes_fit.STRENGTHS)
    return probes_fit.best(fit.weights, given.columns[..., fitted:])[0, 0] == labels[division.test]


@dataclass(frozen=True)
class ByText:
    """Means over rows, with intervals over texts.

    Attributes:
        member: which text each row is of, numbered from 0.
        weights: bootstrap resamples of the texts.
    """

    member: Int[Tensor, " row"]
    weights: Float[Tensor, "draws text"]

    @classmethod
    def of(cls, groups: Int[Tensor, " row"], seed: int) -> "ByText":
        """From the text of each row."""
        known, member = torch.unique(groups, return_inverse=True)
        return cls(member, stats.resamples(len(known), generator(seed, "bootstrap over texts", len(known))))

    def figures(
        self, values: Shaped[Tensor, "*place row"]
    ) -> tuple[Float[Tensor, "*place"], Float[Tensor, "*place"], Float[Tensor, "*place"]]:
        """Mean over rows, and the bounds of its 95 % interval over texts."""
        flat = values.double().reshape(-1, values.shape[-1])
        sums = torch.zeros(self.weights.shape[1], len(flat), dtype=torch.float64).index_add_(0, self.member, flat.T)
        counts = torch.zeros(self.weights.shape[1], dtype=torch.float64).index_add_(0, self.member, torch.ones_like(flat[0]))
        low, high = stats.interval((self.weights @ sums) / (self.weights @ counts)[:, None])
        shape = values.shape[:-1]
        return flat.mean(1).reshape(shape), low.reshape(shape), high.reshape(shape)
