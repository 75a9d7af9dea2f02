"""Probes at many places of any model from the passes it makes anyway: a seeded reservoir of sequences, fitted when you ask."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wallprobe import stats
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach.any_model import of_wrapped
from wallprobe.hooks.attach.modules.attached import Following, names_of
from wallprobe.hooks.probes import fit as probes_fit
from wallprobe.hooks.probes.measure import STRENGTHS, Split
from wallprobe.models import Model
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

Labeller: TypeAlias = Callable[[Tensor], Tensor] | None
LEAST = 16  # sequences to fit, to choose the strength and to score
VARIABLES = {
    "accuracy": ("share of the test rows on which the probe is right", "fraction"),
    "accuracy_low": ("accuracy, 2.5 % bootstrap bound over sequences", "fraction"),
    "accuracy_high": ("accuracy, 97.5 % bootstrap bound over sequences", "fraction"),
    "control_accuracy": ("the same for a probe fitted to and scored on shuffled labels", "fraction"),
    "majority": ("share of the test rows that have the commonest training label", "fraction"),
    "strength": ("of the penalty that validation chose", "1"),
    "loss": ("validation loss", "nats"),
    "n_classes": ("labels there are", "1"),
    "n_test": ("rows the probe is scored on", "1"),
}


class ProbeBank(Following):
    """Keeps a uniform sample of the sequences that go through a model, with their labels; `fit` makes a linear probe at every hook.

    >>> bank = ProbeBank(model, "blocks.*.hook_resid_post", {"parity": lambda tokens: tokens % 2})  # doctest: +SKIP
    >>> with bank:  # doctest: +SKIP
    ...     train_for_a_while(model)
    >>> bank.fit().to_dataframe()  # doctest: +SKIP

    Args:
        model: as `models.as_model`.
        names: hook names or patterns.
        targets: what is to be read, by name: from a pass's token ids `[batch, index]` to labels of that shape, whole numbers from 0, or
            negative where there is none. None for labels that are given with `label` before each pass.
        index: indices of each sequence that count; None for all.
        capacity: sequences kept; of more, each has the same chance (Vitter 1985, algorithm R).
        seed: of that choice, the split and the shuffled control.

    Raises:
        UnknownNameError: as `names_of`.
        ConfigError: without a target, or for a capacity below 16.
    """

    def __init__(
        self,
        model: Model,
        names: str | Sequence[str],
        targets: Labeller | Mapping[str, Labeller],
        *,
        index: int | Sequence[int] | None = None,
        capacity: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__(model, ())
        self.names = tuple(names_of(self.loaded, names))
        self.targets: dict[str, Labeller] = dict(targets) if isinstance(targets, Mapping) else {"target": targets}
        if not self.targets or capacity < LEAST:
            raise ConfigError(
                f"{len(self.targets)} targets and room for {capacity} sequences; give one target or more, and at least {LEAST}"
            )
        self.index = [index] if isinstance(index, int) else None if index is None else list(index)
        self.capacity, self.seed, self.seen = capacity, seed, 0
        self._kept: dict[int, dict[str, Tensor]] = {}
        self._rng = generator(seed, "probe bank", "reservoir")
        self._given: dict[str, Tensor] = {}
        self._slots: dict[int, int] = {}
        self._labels: dict[str, Tensor] = {}
        self._watch = Stopwatch()

    def label(self, labels: Tensor | Mapping[str, Tensor]) -> None:
        """The labels of the next pass, `[batch, index]` whole numbers, for targets that are not made from token ids.

        Raises:
            ConfigError: for a target that the bank does not have.
        """
        given = dict(labels) if isinstance(labels, Mapping) else dict.fromkeys(self.targets, labels)
        unknown = sorted(given.keys() - self.targets.keys())
        if unknown:
            raise ConfigError(f"this bank has no target '{unknown[0]}'; it has: {', '.join(self.targets)}")
        self._given = given

    def _begin(self, tokens: Tensor | None) -> None:
        given, self._given = self._given, {}
        found: dict[str, Tensor] = {}
        for name, make in self.targets.items():
            if name in given:
                found[name] = given[name].detach().cpu()
            elif make is None or tokens is None:
                raise InstrumentError(f"target {name} has no labels for this pass; give them with label(...), or make them from token ids")
            else:
                found[name] = torch.as_tensor(make(tokens)).detach().cpu()
        self._labels = found
        batch = len(next(iter(found.values())))
        self._slots = {}
        for row in range(batch):
            seen = self.seen + row
            slot = seen if seen < self.capacity else int(torch.randint(seen + 1, (1,), generator=self._rng))
            if slot < self.capacity:
                self._slots[slot] = row

    def _part(self, name: str, value: Tensor) -> Tensor:
        kept = value if self.index is None else value[:, self.index]
        return kept[list(self._slots.values())].flatten(2).float().to("cpu", copy=True)

    def _take(self, fired: dict[str, Tensor]) -> None:
        rows = list(self._slots.values())
        length = next(iter(fired.values())).shape[1]
        labels = {}
        for name, value in self._labels.items():
            chosen = value[:, None] if value.ndim == 1 else value if self.index is None else value[:, self.index]
            if chosen.shape[1:] != (length,) or chosen.is_floating_point() or (rows and max(rows) >= len(chosen)):
                raise InstrumentError(f"labels of target {name} have shape {tuple(value.shape)}; wanted whole numbers as batch x index")
            labels[name] = chosen[rows].to(torch.int64)
        for place, slot in enumerate(self._slots):
            values = {name: value[place].clone() for name, value in fired.items()}
            self._kept[slot] = values | {f"target {name}": value[place] for name, value in labels.items()}
        self.seen += len(next(iter(self._labels.values())))

    def fit(self, *, draws: int = 1000) -> Result:
        """A probe at every hook for every target, on what was kept so far: 5/8 of the sequences to fit, 1/8 to choose, 1/4 to score.

        Args:
            draws: bootstrap resamples.

        Returns:
            Result of kind "probe_bank", table by hook and target; a probe of shuffled labels stands beside each.

        Raises:
            InstrumentError: if too few sequences were seen, or a target has no labels in a part of them.
        """
        if len(self._kept) < LEAST:
            raise InstrumentError(f"{len(self._kept)} sequences were seen, too few to fit and score a probe on; give {LEAST} or more")
        order = torch.randperm(len(self._kept), generator=generator(self.seed, "probe bank", "split")).tolist()
        kept = [self._kept[slot] for slot in (sorted(self._kept)[place] for place in order)]
        found = {name: torch.full((len(self.names), len(self.targets)), torch.nan, dtype=torch.float64) for name in VARIABLES}
        for column, target in enumerate(self.targets):
            rows = _Rows.of(kept, target, self.seed)
            for row, hook in enumerate(self.names):
                for name, figure in rows.score(rows.values(kept, hook), self.seed, draws).items():
                    found[name][row, column] = figure
        return self._result(found)

    def _result(self, found: dict[str, Tensor]) -> Result:
        loaded, targets = self.loaded, list(self.targets)
        variables = {name: (("hook", "target"), found[name].numpy(), units, words) for name, (words, units) in VARIABLES.items()}
        data = dataset({"hook": list(self.names), "target": targets}, variables, model=loaded.name)
        best = int((found["accuracy"][:, 0] - found["control_accuracy"][:, 0]).argmax())
        told = {"best_hook": self.names[best], "accuracy": float(found["accuracy"][best, 0])}
        told |= {"control_accuracy": float(found["control_accuracy"][best, 0]), "majority": float(found["majority"][best, 0])}
        summary: dict[str, Any] = {"model": loaded.name, "n_sequences": len(self._kept), "n_seen": self.seen, "target": targets[0]} | told
        summary["finding"] = (
            f"A linear probe reads {targets[0]} best at {told['best_hook']}: right on {told['accuracy']:.0%} of held-out rows, where one "
            f"fitted to shuffled labels is on {told['control_accuracy']:.0%} and the commonest label on {told['majority']:.0%}."
        )
        config = {"model": loaded.name, "names": list(self.names), "targets": targets, "index": self.index}
        manifest = provenance(
            config=config | {"capacity": self.capacity, "seed": self.seed},
            device=str(next(loaded.model.parameters()).device),
            dtype="float32",
            watch=self._watch,
            subject=loaded.name,
            weight_hash=loaded.current_hash,
            seeds={"reservoir": self.seed, "split": self.seed, "shuffle": self.seed, "bootstrap": self.seed},
        )
        return of_wrapped(Result("probe_bank", data, ("hook", "target"), summary, manifest), loaded)


class _Rows:
    """The rows of one target: those with a label, sequences of the training first, then of the validation, then of the test."""

    def __init__(
        self, labelled: list[Bool[Tensor, " index"]], labels: Int[Tensor, " row"], counts: tuple[int, int, int], seed: int
    ) -> None:
        self.labelled, self.labels, self.counts = labelled, labels, counts
        self.classes = int(labels.max()) + 1
        self.shuffled = labels[torch.randperm(len(labels), generator=generator(seed, "probe bank", "shuffle"))]

    @classmethod
    def of(cls, kept: list[dict[str, Tensor]], target: str, seed: int) -> "_Rows":
        split = Split.of(len(kept))
        given = [one[f"target {target}"] for one in kept]
        labelled = [value >= 0 for value in given]
        parts = (split.train, split.validation, split.test)
        train, validation, test = (sum(int(labelled[place].sum()) for place in part.tolist()) for part in parts)
        if min(train, validation, test) < 1:
            raise InstrumentError(
                f"target {target} has {train}, {validation} and {test} labelled rows to fit, choose and score; show it more"
            )
        labels = torch.cat([value[mask] for value, mask in zip(given, labelled, strict=True)])
        return cls(labelled, labels, (train, validation, test), seed)

    def values(self, kept: list[dict[str, Tensor]], hook: str) -> Float[Tensor, "row feature"]:
        """What the hook carried at these rows."""
        return torch.cat([one[hook][mask] for one, mask in zip(kept, self.labelled, strict=True)])

    def score(self, x: Float[Tensor, "row feature"], seed: int, draws: int) -> dict[str, float]:
        """A probe and its control, fitted together and scored on the test rows."""
        train, validation, test = self.counts
        given = probes_fit.features(x[None], train, validation)
        both = torch.stack([self.labels, self.shuffled])[None]
        fit = probes_fit.softmax_path(given, both[..., : given.fitted], max(2, self.classes), STRENGTHS)
        right = (probes_fit.best(fit.weights, given.columns[..., given.fitted :]) == both[..., given.fitted :])[0].double()
        commonest = int(self.labels[:train].bincount().argmax())
        low, high = self._bounds(right[0], seed, draws)
        return {
            "accuracy": float(right[0].mean()),
            "accuracy_low": low,
            "accuracy_high": high,
            "control_accuracy": float(right[1].mean()),
            "majority": float((self.labels[given.fitted :] == commonest).double().mean()),
            "strength": float(fit.strength[0, 0]),
            "loss": float(fit.loss[0, 0]),
            "n_classes": float(self.classes),
            "n_test": float(test),
        }

    def _bounds(self, right: Float[Tensor, " row"], seed: int, draws: int) -> tuple[float, float]:
        """Bootstrap bounds over the test's sequences."""
        sizes = [int(mask.sum()) for mask in self.labelled]
        ends, tested = torch.tensor(sizes).cumsum(0), sum(self.counts[:2])
        sizes = [size for size, end in zip(sizes, ends.tolist(), strict=True) if end > tested and size]
        sums = torch.stack([part.sum() for part in torch.split(right, sizes)])
        weights = stats.resamples(len(sizes), generator(seed, "probe bank", "bootstrap"), draws)
        share = (weights @ sums) / (weights @ torch.tensor(sizes, dtype=torch.float64))
        low, high = stats.interval(share[:, None])
        return float(low), float(high)
