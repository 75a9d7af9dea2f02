"""Protocols of what stands by itself: tasks, conditions, instruments, exhibits, claims. Each function lists what must hold of a part."""

import inspect
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wallprobe.claims.ledger.claim import Area, judge_all
from wallprobe.claims.ledger.measurements import Measurements
from wallprobe.doctor.check import hold
from wallprobe.gallery import Exhibit
from wallprobe.hooks.registry import Instrument
from wallprobe.store.results import list_results
from wallprobe.tasks.task import Posterior, Task
from wallprobe.training.wall.conditions import Condition
from wallprobe.training.wall.signals import routes, signals

Asked = Iterator[tuple[str, Callable[[], str | None]]]
DRAWN, SHORT = 32, 5  # sequences, and indices of a shorter read of them
HORIZON = 5
EXACT = 1e-9  # of probabilities and bits in fp64


@dataclass(frozen=True)
class Stores:
    """Where runs and Results are; None for the usual places."""

    runs: Path | None = None
    results: Path | None = None


NOWHERE = Stores()


def task(name: str, kind: type[Task]) -> Asked:
    """Sampling, the exact answer, and that it looks at nothing ahead."""
    made: list[Task] = []

    def stands() -> str:
        hold(bool(re.fullmatch(r"[a-z][a-z0-9-]*", name)), f"name '{name}' is not [a-z][a-z0-9-]*")
        one = kind()  # type: ignore[call-arg]  # subclasses give the fields their defaults
        made.append(one)
        hold(one.vocabulary >= one.modulus, f"vocabulary {one.vocabulary} is below the modulus {one.modulus}")
        hold(one.context >= one.length, f"context {one.context} is below the length {one.length}")
        return one.label

    def samples() -> str:
        one, gen = made[0], torch.Generator()
        drawn = one.sample(DRAWN, gen.manual_seed(0))
        tokens, wanted = drawn.tokens, (DRAWN, one.length)
        hold(
            tuple(tokens.shape) == wanted and tokens.dtype == torch.int64,
            f"tokens are {tokens.dtype} {tuple(tokens.shape)}, not int64 {wanted}",
        )
        inside = int(tokens.min()) >= 0 and int(tokens.max()) < one.vocabulary
        hold(inside, f"tokens lie in {int(tokens.min())}..{int(tokens.max())}, not 0..{one.vocabulary - 1}")
        marks = drawn.is_program
        hold(
            tuple(marks.shape) == (DRAWN,) and marks.dtype == torch.bool,
            f"is_program is {marks.dtype} {tuple(marks.shape)}, not bool ({DRAWN},)",
        )
        again = one.sample(DRAWN, gen.manual_seed(0)).tokens
        hold(torch.equal(tokens, again), "the same generator gave other sequences the second time")
        return f"{DRAWN} sequences of {one.length}"

    def answers() -> str:
        one = made[0]
        tokens = one.sample(DRAWN, torch.Generator().manual_seed(0)).tokens
        said, places = one.posterior(tokens), one.length - 1
        wanted: dict[str, tuple[int, ...]] = {"predictive": (DRAWN, places, one.vocabulary)}
        wanted |= dict.fromkeys(("program_weight", "forced", "entropy", "best"), (DRAWN, places))
        for field, shape in wanted.items():
            found = tuple(getattr(said, field).shape)
            hold(found == shape, f"{field} is {found}, not [batch, position{', vocab' if len(shape) == 3 else ''}] = {shape}")
        _distribution(said)
        return f"sums to 1 at {places} positions"

    def looks_back() -> str:
        one = made[0]
        tokens = one.sample(DRAWN, torch.Generator().manual_seed(0)).tokens
        short = min(SHORT, one.length)
        whole, part = one.posterior(tokens).predictive[:, : short - 1], one.posterior(tokens[:, :short]).predictive
        apart = float((whole - part).abs().max())
        hold(apart <= EXACT, f"the answer to the first {short} tokens is off by {apart:.1e} from that to all: it looks ahead")
        return f"off by {apart:.1e} at most"

    yield "can be made with its defaults", stands
    yield "draws [batch, index] tokens from the generator alone", samples
    yield "its posterior is a distribution, with its entropy and its best token", answers
    yield "its posterior looks at nothing ahead", looks_back


def _distribution(said: Posterior) -> None:
    chances = said.predictive.double()
    off = float((chances.sum(-1) - 1).abs().max())
    hold(off <= EXACT and float(chances.min()) >= 0, f"probabilities sum to 1 only to {off:.1e}, the least is {float(chances.min()):.1e}")
    least, most = float(said.program_weight.min()), float(said.program_weight.max())
    hold(least >= 0 and most <= 1, f"program_weight lies in {least:.3g}..{most:.3g}, not within 0..1")
    bits = torch.special.xlogy(chances, chances).sum(-1) / -math.log(2.0)
    apart = float((bits - said.entropy.double()).abs().max())
    hold(apart <= 1e-6, f"entropy is off by {apart:.1e} bits")
    behind = float((chances.amax(-1) - chances.gather(-1, said.best[..., None])[..., 0]).max())
    hold(behind <= EXACT, f"best is {behind:.1e} less likely than the likeliest token")


def condition(name: str, one: Condition) -> Asked:
    """Its signal and route are there, its positions lie within a sequence."""

    def known() -> str:
        for what, given, there in (("signal", one.signal, signals()), ("route", one.route, routes())):
            hold(given in there, f"no {what} named '{given}'; there are: {', '.join(there)}")
        return f"{one.signal} through {one.route}"

    def reaches() -> str:
        mask = one.position_mask(16, HORIZON)
        hold(any(mask) or one.signal == "none", "its signal reaches no position")
        return f"{sum(mask)} of {len(mask)} positions"

    yield "its signal and its route are there", known
    yield "its positions lie within a sequence", reaches


def instrument(name: str, one: Instrument) -> Asked:
    """It takes what it says it needs."""

    def takes() -> str:
        given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
            "run": ((None,), {"device": "cpu"}),
            "model": ((None,), {}),
            "prompts": ((None, None), {}),
        }
        positional, named = given[one.needs]
        inspect.signature(one.measure).bind(*positional, **named)
        return f"{one.needs}; {', '.join(one.options()) or 'no options'}"

    yield "takes what it says it needs, and no more without a default", takes


def exhibit(kind: str, draw: Any, stores: Stores = NOWHERE) -> Asked:
    """It takes one Result; the newest stored one of its kind is drawn."""

    def takes() -> str:
        hold(callable(draw), f"{draw!r} cannot be called")
        inspect.signature(draw).bind(None)
        return ""

    def draws() -> str | None:
        sound, _ = list_results(stores.results)
        found = sorted((one for _, one in sound if one.kind == kind), key=lambda one: str(one.manifest.get("created", "")))
        if not found:
            return None
        page = draw(found[-1])
        hold(isinstance(page, Exhibit), f"gave {type(page).__name__}, not an Exhibit")
        return str(page.title)

    yield "takes one Result", takes
    yield "draws the newest stored Result of its kind", draws


def area(name: str, one: Area, stores: Stores = NOWHERE) -> Asked:
    """Its measurements can be read, each source with the hash of the weights it was made on, and its claims judged."""
    read: list[Measurements] = []

    def reads() -> str:
        found = one.read(one.preset, stores.results if one.from_results else stores.runs)
        hold(isinstance(found, Measurements), f"read gave {type(found).__name__}, not Measurements")
        read.append(found)
        for key, source in found.sources.items():
            hold(isinstance(source.weight_hash, str), f"source {key} has a weight hash of {type(source.weight_hash).__name__}, not text")
            hold(key == (source.name.condition, source.name.seed), f"source {key} is that of {source.name}")
        return f"{len(found.sources)} sources"

    def judges() -> str:
        verdicts = judge_all(one, read[0])
        hold(len(verdicts) == len(one.claims), f"{len(one.claims)} claims, {len(verdicts)} verdicts")
        return f"{len(verdicts)} claims"

    yield "its measurements can be read, with the hash of their weights", reads
    yield "each of its claims is judged", judges
