"""Pairs for an interchange: donor and base token sequences, the answers told apart, what is read, and whose donor another pair gets.

They come from a task whose answer is known (`programs`), from a file of prompts (`texts.read_pairs`), or from the user's own tensors. Donor
and base may differ in length, from each other and from pair to pair; a slot then says which token of each is meant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.hooks.interchange.places import At
from wallprobe.models import Limits
from wallprobe.rng import generator
from wallprobe.tasks.recurrence import RecurrenceTask

PROGRAMS, TEXTS, OWN = "programs", "texts", "own"
Rows = Int[Tensor, "pair index"] | Sequence[Int[Tensor, "_"]]


@dataclass(frozen=True)
class Bucket:
    """Pairs whose sequences are alike in length and whose slots stand at the same indices: they go through a model together.

    Attributes:
        rows: which pairs.
        donor, base: their tokens.
        donor_at, base_at: index of each slot.
    """

    rows: Int[Tensor, " row"]
    donor: Int[Tensor, "row donor_index"]
    base: Int[Tensor, "row base_index"]
    donor_at: Mapping[At, int]
    base_at: Mapping[At, int]


@dataclass(frozen=True)
class Pairs:
    """Donor and base sequences with the answers that are told apart.

    Attributes:
        donor: token ids run in src, `[pair, index]` or one 1-D tensor a pair.
        base: token ids run in dst.
        answers: name -> the token that is that answer, one a pair.
        read: index of the base at which the answer is read; the last by default. What comes after it is cut off.
        slots: name -> index in each pair, of donor and base alike, or a pair of such: (in the donor, in the base).
        donors: name of the answer that is the donor's own, which a mismatched donor does not have; the first by default.
        rest: name -> for each pair the further tokens of an answer that has several.
        also: name -> for each pair other tokens that are as right.
        kind: where they come from.
        words: what they are as text, by name: pieces of the donor, of the base, answers.
        orders: a drawn order of random and of mismatched donors, where it was drawn with the pairs.
        data_hash: SHA-256 of the file, of texts.
        donor_logits, base_logits: what the models say without a patch; set while they run.
    """

    donor: Rows
    base: Rows
    answers: Mapping[str, Int[Tensor, " pair"]]
    read: InitVar[Any] = -1
    slots: Mapping[str, Any] = field(default_factory=dict)
    donors: str = ""
    rest: Mapping[str, Sequence[tuple[int, ...]]] = field(default_factory=dict)
    also: Mapping[str, Sequence[tuple[int, ...]]] = field(default_factory=dict)
    kind: str = OWN
    words: Mapping[str, Any] = field(default_factory=dict)
    orders: tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]] | None = None
    data_hash: str = ""
    donor_logits: Float[Tensor, "pair vocab"] | None = None
    base_logits: Float[Tensor, "pair vocab"] | None = None

    def __post_init__(self, read: Any) -> None:
        if isinstance(read, int) and read != -1:  # dataclasses.replace gives what stands under that name afterwards
            object.__setattr__(self, "base", [row[: read % len(row) + 1] for row in self.base])
        count = len(self.donor)
        sizes = {"base": len(self.base), **{f"answer {name}": len(ids) for name, ids in self.answers.items()}}
        wrong = next((name for name, size in sizes.items() if size != count), None)
        if wrong is not None or not count or not self.answers:
            said = f"{wrong} has {sizes[wrong]}" if wrong else f"there are {len(self.answers)} answers"
            raise ConfigError(f"{count} donors, but {said}; give a donor, a base and a token of each answer for every pair")
        if self.donors and self.donors not in self.answers:
            raise ConfigError(f"donors '{self.donors}' is none of the answers: {', '.join(self.answers)}")
        for name, (donor_at, base_at) in self._positions.items():
            for side, at in (("donor", donor_at), ("base", base_at)):
                rows = getattr(self, side)
                outside = next((row for row, index in enumerate(at.tolist()) if not 0 <= index < len(rows[row])), None)
                if len(at) != count or outside is not None:
                    where = "" if outside is None else f"; in pair {outside + 1} it lies outside the {side}"
                    raise ConfigError(f"slot {name} has {len(at)} indices for {count} pairs{where}; give one within each {side}")

    def __len__(self) -> int:
        return len(self.donor)

    @property
    def own(self) -> Int[Tensor, " pair"]:
        """The answer of that name."""
        return self.answers["own"]

    @property
    def rule(self) -> Int[Tensor, " pair"]:
        """The answer of that name."""
        return self.answers["rule"]

    @property
    def imported(self) -> Int[Tensor, " pair"]:
        """The answer `import`."""
        return self.answers["import"]

    @property
    def donors_answer(self) -> str:
        """Name of the answer that is the donor's own."""
        return self.donors or next(iter(self.answers))

    @cached_property
    def _positions(self) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for name, at in self.slots.items():
            both = at if isinstance(at, tuple) and len(at) == 2 else (at, at)
            lengths = [torch.tensor([len(row) for row in side]) for side in (self.donor, self.base)]
            given = [torch.as_tensor(one, dtype=torch.int64) for one in both]
            found[name] = tuple(torch.where(one < 0, one + long, one) for one, long in zip(given, lengths, strict=True))
        return found  # type: ignore[return-value]

    @cached_property
    def lengths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Lengths of donors and of bases, up to and with the index that is read, each once."""
        return tuple(tuple(sorted({len(row) for row in rows})) for rows in (self.donor, self.base))  # type: ignore[return-value]

    @cached_property
    def buckets(self) -> list[Bucket]:
        """The pairs by length and slots, in the order of their first; one bucket where all are alike."""
        kept: dict[tuple[Any, ...], list[int]] = {}
        for row, (donor, base) in enumerate(zip(self.donor, self.base, strict=True)):
            marks = tuple((int(donor_at[row]), int(base_at[row])) for donor_at, base_at in self._positions.values())
            kept.setdefault((len(donor), len(base), marks), []).append(row)
        made = []
        for (_, _, marks), rows in kept.items():
            donor, base = (torch.stack([one[row] for row in rows]) for one in (self.donor, self.base))
            names = list(self._positions)
            at: list[dict[At, int]] = [dict(zip(names, (mark[side] for mark in marks), strict=True)) for side in (0, 1)]
            made.append(Bucket(torch.tensor(rows), donor, base, *at))
        return made

    def take(self, rows: Int[Tensor, " row"]) -> "Pairs":
        """Some of them."""
        chosen = rows.tolist()

        def some(values: Any) -> Any:
            return values[rows] if isinstance(values, Tensor) else [values[row] for row in chosen]

        return replace(
            self,
            donor=some(self.donor),
            base=some(self.base),
            answers={name: ids[rows] for name, ids in self.answers.items()},
            slots={name: (both[0][rows], both[1][rows]) for name, both in self._positions.items()},
            rest={name: some(values) for name, values in self.rest.items()},
            also={name: some(values) for name, values in self.also.items()},
            words={name: [values[row] for row in chosen] for name, values in self.words.items()},
            orders=None,
            donor_logits=None if self.donor_logits is None else self.donor_logits[rows],
            base_logits=None if self.base_logits is None else self.base_logits[rows],
        )

    def flipped(self) -> "Pairs":
        """Donors and bases exchanged, the first two answers with them: noise into the clean sequences, where these were denoised."""
        names = list(self.answers)
        if len(names) != 2:
            raise ConfigError(f"pairs with the answers {', '.join(names)} have no other direction; give pairs with two answers")
        turned = dict(zip(names, reversed(names), strict=True))
        return replace(
            self,
            donor=self.base,
            base=self.donor,
            answers={name: self.answers[turned[name]] for name in names},
            slots={name: (both[1], both[0]) for name, both in self._positions.items()},
            rest={turned[name]: values for name, values in self.rest.items()},
            also={turned[name]: values for name, values in self.also.items()},
            words={{"clean": "corrupt", "corrupt": "clean", **turned}.get(name, name): values for name, values in self.words.items()},
        )

    def check(self, model: str, bounds: Limits) -> None:
        """Refuse pairs that a model cannot read.

        Raises:
            ConfigError: naming the first, if its sequences are too long or hold tokens that the model does not know.
        """
        sides = ("clean prompt", "corrupt prompt") if self.kind == TEXTS else ("donor", "base")
        for number, rows in enumerate(zip(self.donor, self.base, strict=True), 1):
            for side, row in zip(sides, rows, strict=True):
                bounds.check(model, f"the {side} of pair {number}", row.tolist())
        for ids in self.answers.values():
            for number, one in enumerate(ids.tolist(), 1):
                Limits(1, bounds.vocabulary).check(model, f"an answer of pair {number}", [one])

    def other_donors(self, seed: int) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
        """For each pair another one: any, and one with another answer.

        Raises:
            ConfigError: if every donor has the same answer.
        """
        if self.orders is not None:
            return self.orders
        following = rotation(len(self), generator(seed, "prompts donors"))
        return following, mismatched(self.answers[self.donors_answer], following)

    @classmethod
    def programs(cls, task: RecurrenceTask, count: int = 1000, *, horizon: int = 5, seed: int = 0) -> "Pairs":
        """Pairs of programs of `horizon` tokens whose three answers differ and whose donors determine their rule.

        Args:
            task: linear recurrences.
            count: pairs drawn; those whose answers coincide, or whose donor shows no rule, are dropped.
            horizon: index of the answer, which is read one before.
            seed: of the draw.

        Raises:
            ConfigError: if fewer than 3 pairs remain.
        """
        rng = generator(seed, "interchange pairs")
        task.check_room(2 * count, "--pairs")
        donor, base = task.sample_programs(count, rng), task.sample_programs(count, rng)
        rule = (donor.slope * base.tokens[:, horizon - 1] + donor.offset) % task.modulus
        imported, own = donor.tokens[:, horizon], base.tokens[:, horizon]
        shows_rule = donor.tokens[:, 0] != donor.tokens[:, 1]
        keep = shows_rule & (rule != imported) & (rule != own) & (imported != own)
        if int(keep.sum()) < 3:
            raise ConfigError(f"{int(keep.sum())} of {count} pairs have three distinct answers; ask for more with --pairs")
        answers = {"rule": rule[keep], "import": imported[keep], "own": own[keep]}
        # A rotation of a random order: nobody keeps their own donor.
        shuffled = rotation(len(answers["own"]), rng)
        orders = shuffled, mismatched(answers["import"], shuffled)
        sides = donor.tokens[keep, :horizon], base.tokens[keep, :horizon]
        return cls(*sides, answers, donors="import", kind=PROGRAMS, orders=orders)


def rotation(count: int, rng: torch.Generator) -> Int[Tensor, " pair"]:
    """A random order in which nobody stays where they are."""
    order = torch.randperm(count, generator=rng)
    following = torch.empty_like(order)
    following[order] = order.roll(1)
    return following


def mismatched(answer: Int[Tensor, " pair"], order: Int[Tensor, " pair"]) -> Int[Tensor, " pair"]:
    """Like `order`, but each walks on along it to the first donor whose answer is not its own donor's.

    Raises:
        ConfigError: if every donor has the same answer.
    """
    chosen = order.clone()
    for _ in range(len(order)):
        clash = answer[chosen] == answer
        if not bool(clash.any()):
            return chosen
        chosen[clash] = order[chosen[clash]]
    raise ConfigError("every donor has the same answer; ask for more pairs with --pairs, or give pairs with at least 2 answers")
