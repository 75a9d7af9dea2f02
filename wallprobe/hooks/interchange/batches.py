"""An engine over all pairs: those of one length and with slots at one index go together, and answers of several tokens one token after
the other. Where all pairs are alike there is one batch, and nothing is computed twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.hooks.interchange.engines import Looped, Reduce
from wallprobe.hooks.interchange.pairs import Bucket, Pairs
from wallprobe.hooks.interchange.places import At, Place
from wallprobe.hooks.interchange.reads import Reader

MORE = "more_"  # of an answer: the log-probability of its tokens after the first


@dataclass(frozen=True)
class Batch:
    """Sequences that go together.

    Attributes:
        rows: which pairs.
        tokens: their sequences.
        at: where each slot stands.
        answer: what is read: None for the reads, else the name of an answer whose next token is `targets`.
        targets: one a row.
    """

    rows: Int[Tensor, " row"]
    tokens: Int[Tensor, "row index"]
    at: Mapping[At, int]
    answer: str | None = None
    targets: Int[Tensor, " row"] | None = None


def batches(pairs: Pairs, side: str) -> list[Batch]:
    """The donors or the bases, then what answers of several tokens need besides: the same with the answer's first tokens behind."""
    made, more = [], []
    for bucket in pairs.buckets:
        tokens, at = (bucket.donor, bucket.donor_at) if side == "donor" else (bucket.base, bucket.base_at)
        made.append(Batch(bucket.rows, tokens, at))
        more += _further(pairs, bucket, tokens, at)
    return made + more


def _further(pairs: Pairs, bucket: Bucket, tokens: Int[Tensor, "row index"], at: Mapping[At, int]) -> list[Batch]:
    made = []
    for name, rest in pairs.rest.items():
        for step in range(max(len(one) for one in rest)):
            here = [place for place, row in enumerate(bucket.rows.tolist()) if len(rest[row]) > step]
            if here:
                rows = bucket.rows[here]
                said = torch.tensor([[int(pairs.answers[name][row]), *rest[row][:step]] for row in rows.tolist()])
                targets = torch.tensor([rest[row][step] for row in rows.tolist()])
                made.append(Batch(rows, torch.cat([tokens[here], said], dim=1), at, name, targets))
    return made


class Batched:
    """An engine on one side of the pairs.

    Args:
        engine: of the model.
        pairs: what it is given.
        side: "donor" or "base".
    """

    def __init__(self, engine: Looped, pairs: Pairs, side: str, device: str) -> None:
        self.engine, self._count, self._device = engine, len(pairs), device
        every = batches(pairs, side)
        self._main, self._more = [one for one in every if one.answer is None], [one for one in every if one.answer is not None]
        self._values: dict[Place, Tensor] = {}
        self._names = list(pairs.rest)

    @property
    def alone(self) -> bool:
        """Is there one batch, so that what it left in the engine stays good?"""
        return len(self._main) == 1 and not self._more

    def _run(self, batch: Batch, places: Sequence[Place]) -> Float[Tensor, "row vocab"]:
        return self.engine.run(batch.tokens.to(self._device), [place.moved(batch.at) for place in places])

    def run(self, places: Sequence[Place]) -> Float[Tensor, "pair vocab"]:
        """Logits of every pair without a patch; what stands at the places is kept for `value`."""
        if self.alone:
            return self._run(self._main[0], places).cpu()
        self._values, logits = {}, None
        for batch in self._main:
            found = self._run(batch, places).cpu()
            logits = found.new_empty(self._count, found.shape[-1]) if logits is None else logits
            logits[batch.rows] = found
            for place in places:
                value = self.engine.value(place.moved(batch.at)).cpu()
                self._values.setdefault(place, value.new_empty(self._count, value.shape[-1]))[batch.rows] = value
        assert logits is not None
        return logits

    def value(self, place: Place) -> Float[Tensor, "pair width"]:
        """What stood there in the last run."""
        return self.engine.value(place.moved(self._main[0].at)) if self.alone else self._values[place]

    def more(self) -> dict[str, Float[Tensor, " pair"]]:
        """Log-probability of each answer's tokens after the first, without a patch."""
        found = {f"{MORE}{name}": torch.zeros(self._count, dtype=torch.float64) for name in self._names}
        for batch in self._more:
            read = _next_token(batch)(self._run(batch, [])[None])[0]
            found[f"{MORE}{batch.answer}"][batch.rows] += read[:, 0]
        return found

    def patched(self, entries: Sequence[tuple[Place, Tensor]], reader: Reader) -> list[dict[str, Float[Tensor, " pair"]]]:
        """What is read with each of these patches, by name; cells of one index, in the order of `budget.entered`."""
        if self.alone:
            at = self._main[0].at
            moved = [(place.moved(at), value) for place, value in entries]
            return [reader.named(row) for row in self.engine.patched(moved, reader.on(None))]
        found: list[dict[str, Tensor]] = [{} for _ in entries]
        for batch in (*self._main, *self._more):
            self._run(batch, list(dict.fromkeys(place for place, _ in entries)))
            moved = [(place.moved(batch.at), value[batch.rows].to(self._device)) for place, value in entries]
            reduce: Reduce = _next_token(batch) if batch.answer else reader.on(batch.rows)
            for into, row in zip(found, self.engine.patched(moved, reduce), strict=True):
                read = {f"{MORE}{batch.answer}": row[:, 0]} if batch.answer else reader.named(row)
                for name, values in read.items():
                    into.setdefault(name, torch.zeros(self._count, dtype=torch.float64))[batch.rows] += values
        return [{f"{MORE}{name}": torch.zeros(self._count, dtype=torch.float64) for name in self._names} | one for one in found]

    def whole(
        self, place: Place, value: Float[Tensor, "pair width"], reader: Reader
    ) -> tuple[dict[str, Float[Tensor, " row"]], slice | Tensor, float]:
        """What is read with a patch by a whole pass, of the first batch; which pairs these are, and the largest logit."""
        batch = self._main[0]
        if not self.alone:
            self._run(batch, [])
        logits = self.engine.whole.patch(batch.tokens.to(self._device), place.moved(batch.at), value[batch.rows])[0]
        return reader.named(reader.on(batch.rows)(logits[None])[0]), batch.rows, float(logits.abs().max())

    def self_patches(self, places: Sequence[Place]) -> dict[Place, float]:
        """The largest change of a logit when a cell is given its own activation, in every batch."""
        changes = dict.fromkeys(places, 0.0)
        for batch in self._main:
            if not self.alone:
                self._run(batch, places)
            moved = {place.moved(batch.at): place for place in places}
            for place, change in self.engine.self_patches(list(moved)).items():
                changes[moved[place]] = max(changes[moved[place]], change)
        return changes

    def groups(self, places: Sequence[Place], arms: int, gib: float) -> list[list[Place]]:
        """Cells that go together within a budget, as the largest batch allows.

        Raises:
            ConfigError: if not even one cell fits.
        """
        batch = max(self._main, key=lambda batch: batch.tokens.numel())
        back = {place.moved(batch.at): place for place in places}
        if len(back) < len(places):  # two slots at one index there: they cannot be told apart, and go one by one
            return [[place] for place in places]
        return [[back[place] for place in group] for group in self.engine.groups(list(back), batch.tokens, arms, gib)]

    def passes(self, places: Sequence[Place], arms: int) -> float:
        """Whole passes over all pairs that the patches cost."""
        batch = self._main[0]
        length, often = batch.tokens.shape[1], 1 + len(self._more) / max(1, len(self._main))
        return arms * often * sum(self.engine.passes(place.moved(batch.at), length) for place in places)


def _next_token(batch: Batch) -> Reduce:
    assert batch.targets is not None
    targets = batch.targets

    def read(logits: Float[Tensor, "entry row vocab"]) -> Float[Tensor, "entry row 1"]:
        log = logits.double().log_softmax(-1)
        return log.gather(-1, targets.to(log.device).expand(log.shape[:-1])[..., None]).cpu()

    return read
