"""Protocols of what is given tensors: signals, routes, reads, interventions, estimators. Random ones are given; each function lists
what must hold of a part."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wallprobe.doctor.check import FailedError, hold
from wallprobe.errors import ConfigError, one_line
from wallprobe.hooks.attach.interventions import Intervention
from wallprobe.hooks.interchange.pairs import Pairs
from wallprobe.hooks.interchange.reads import Read
from wallprobe.models import build
from wallprobe.models.equilibrium import EqConfig, PlainEquilibrium
from wallprobe.rng import generator
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.estimators.nets import Sizes, build_net
from wallprobe.training.estimators.protocol import Batch, GradResult, Maker
from wallprobe.training.wall import lean
from wallprobe.training.wall.conditions import conditions
from wallprobe.training.wall.signals import INTROSPECTIVE, Output, Route, Signal, StepData, check_loss, check_target, signals

Asked = Iterator[tuple[str, Callable[[], str | None]]]
BATCH, WIDTH = 8, 8
PAIRS, VOCABULARY = 6, 11


def _step() -> StepData:
    """A step's data, of the recurrence."""
    task, draws = RecurrenceTask(), generator(0, "doctor step")
    drawn = task.sample(BATCH, draws)
    exact = task.posterior(drawn.tokens, torch.float32)
    logits = torch.randn(exact.predictive.shape, generator=draws)
    return StepData(drawn.tokens, drawn.is_program.float(), exact, logits, generator(0, "doctor signal"), 1.0, WIDTH, symbols=task.modulus)


def _output(data: StepData) -> Output:
    """A network's output to it, leaves of a graph."""
    draws, places = generator(0, "doctor output"), data.posterior.entropy.shape

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*places, *shape, generator=draws)

    size = data.posterior.predictive.shape[-1]
    live = [one.requires_grad_(True) for one in (drawn(size), drawn(WIDTH), drawn())]
    return Output(live[0], live[1], live[2], drawn(size), drawn(size), symbols=data.symbols)


def _finite(values: Tensor, what: str) -> None:
    hold(not values.is_floating_point() or bool(torch.isfinite(values).all()), f"{what} has entries that are not finite")


def signal(name: str, one: Signal) -> Asked:
    """Shape, no gradient, finite, and drawn from the step's generator alone."""

    def gives() -> str:
        data = _step()
        before = data.tokens.clone()
        target = check_target(name, one(data), data)
        _finite(target, "its target")
        hold(torch.equal(before, data.tokens), "it changed the tokens")
        return f"{str(target.dtype).removeprefix('torch.')} {tuple(target.shape)}"

    def repeats() -> str:
        hold(torch.equal(one(_step()), one(_step())), "the same step gave another target the second time; draw from data.generator alone")
        return ""

    yield "gives a constant target, one entry a sequence and position", gives
    yield "gives the same target to the same step", repeats


def route(name: str, one: Route) -> Asked:
    """Shape, finite, and a gradient that enters the network, with the targets it is used with."""

    def gives() -> str:
        known = signals()
        used = sorted({each.signal for each in conditions().values() if each.route == name and each.signal in known})
        for chosen in used or ("entropy",):
            data = _step()
            output = _output(data)
            target = INTROSPECTIVE[chosen](output) if chosen in INTROSPECTIVE else known[chosen](data)
            loss = check_loss(name, one(output, target), output)
            _finite(loss, f"its loss with signal {chosen}")
            if name != "none":
                _enters(loss, output)
        return f"with {', '.join(used) or 'entropy (no condition uses it)'}"

    yield "gives one loss a sequence and position, with a gradient", gives


def _enters(loss: Tensor, output: Output) -> None:
    hold(loss.requires_grad, "no gradient flows from its loss into the network's output")
    assert output.head is not None
    found = torch.autograd.grad(loss.sum(), (output.logits, output.residual, output.head), allow_unused=True)
    given = [one for one in found if one is not None]
    hold(bool(given), "no gradient flows from its loss into the network's output")
    for gradient in given:
        _finite(gradient, "the gradient of its loss")


def _pairs() -> Pairs:
    draws = generator(0, "doctor pairs")

    def ids(*shape: int) -> Tensor:
        return torch.randint(VOCABULARY, shape, generator=draws)

    answers = {"rule": ids(PAIRS), "import": ids(PAIRS), "own": ids(PAIRS)}
    said = [torch.randn(PAIRS, VOCABULARY, generator=draws) for _ in range(2)]
    return Pairs(ids(PAIRS, 5), ids(PAIRS, 5), answers, donors="import", donor_logits=said[0], base_logits=said[1])


def read(name: str, one: Read) -> Asked:
    """One finite figure a pair, under any leading dims, and each pair's of that pair alone."""
    logits = torch.randn(2, PAIRS, VOCABULARY, generator=generator(0, "doctor read"))

    def gives() -> str:
        hold(isinstance(one.units, str), f"its units are {one.units!r}, not text")
        for given in (logits[0], logits):
            found = one(given, _pairs())
            hold(bool(found), "gives no figure at all")
            for figure, values in found.items():
                shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                wanted = tuple(given.shape[:-1])
                hold(shape == wanted, f"gives {shape} of logits {tuple(given.shape)}{' in ' + figure if figure else ''}, not {wanted}")
                _finite(values, f"figure {figure or name}")
        return f"{', '.join(filter(None, found)) or 'one figure'}; {one.units or 'no units'}"

    def by_itself() -> str:
        pairs, some = _pairs(), torch.tensor([4, 1])
        whole, part = one(logits[0], pairs), one(logits[0][some], pairs.take(some))
        for figure, values in whole.items():
            same = torch.allclose(values[some].double(), part[figure].double(), rtol=1e-5, atol=1e-6)
            hold(same, "a pair's figure depends on which other pairs are read with it")
        return ""

    yield "gives one figure a pair", gives
    yield "reads each pair by itself", by_itself


def intervention(name: str, one: Intervention) -> Asked:
    """The receiver's shape and type, finite, inputs untouched, the same again."""
    draws = generator(0, "doctor intervention")
    base, source = (torch.randn(PAIRS, WIDTH, generator=draws) for _ in range(2))

    def keeps() -> str:
        given = base.clone(), source.clone()
        patched = one(*given)
        shape = (patched.dtype, tuple(patched.shape)) if isinstance(patched, Tensor) else type(patched).__name__
        hold(shape == (base.dtype, tuple(base.shape)), f"gives {shape} of base {(base.dtype, tuple(base.shape))}")
        _finite(patched, "what it puts there")
        hold(torch.equal(given[0], base) and torch.equal(given[1], source), "it changed what it was given; make a new tensor")
        own = one(base.clone(), base.clone())
        return "puts back what is there where donor and receiver are alike" if torch.equal(own, base) else "changes also what is alike"

    def repeats() -> str:
        same = torch.equal(one(base.clone(), source.clone()), one(base.clone(), source.clone()))
        hold(same, "gave another activation the second time; draw from a seed of your own")
        return ""

    yield "gives [pair, d_dst] and leaves what it is given", keeps
    yield "gives the same again", repeats


def _models() -> Iterator[tuple[str, nn.Module, Batch]]:
    """A network of the audit, a decoder, an equilibrium, each with a batch."""
    draws = generator(0, "doctor batch")
    net = build_net("student", (1, 4, 4), 3, 0, Sizes(width=WIDTH, depth=2))
    yield "a network of the audit", net, Batch(torch.randn(BATCH, 1, 4, 4, generator=draws), torch.randint(3, (BATCH,), generator=draws))
    tokens = torch.randint(5, (BATCH, 7), generator=draws)
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    shape = lean.Shape(1, WIDTH, 2, 6, 5)
    yield "a decoder", _decoder(shape), batch
    yield "an equilibrium", PlainEquilibrium(EqConfig(5, WIDTH, 2, 6, T1=8, T2=4)), batch


def _decoder(shape: lean.Shape) -> nn.Module:
    from dataclasses import asdict

    return build(asdict(shape), lean.to_hooked(lean.init_params(shape, 0, 1.0), shape), "cpu")


def estimator(name: str, maker: Maker) -> Asked:
    """A gradient in the shape of each parameter, and a loss, on the kinds of model that it takes."""

    def gives() -> str:
        taken, refused = list[str](), list[str]()
        for what, model, batch in _models():
            try:
                found = maker(model, 0)(model, batch)
            except ConfigError:
                continue
            except Exception as error:  # other kinds of model are refused in whatever way comes first
                refused.append(f"{what}: {type(error).__name__}: {one_line(error, 80)}")
                continue
            _gradient(found, model)
            taken.append(what)
        if not taken:
            raise FailedError(f"takes no kind of model: {'; '.join(refused) or 'it refuses each'}")
        return f"of {', '.join(taken)}"

    yield "gives a gradient in each parameter's shape, and a loss", gives


def _gradient(found: Any, model: nn.Module) -> None:
    hold(isinstance(found, GradResult), f"gives {type(found).__name__}, not GradResult")
    there = dict(model.named_parameters())
    for parameter, gradient in found.grads.items():
        hold(parameter in there, f"gives a gradient of '{parameter}', which the model does not have")
        shapes = tuple(gradient.shape), tuple(there[parameter].shape)
        hold(shapes[0] == shapes[1], f"the gradient of {parameter} is {shapes[0]}, not {shapes[1]}")
        _finite(gradient, f"the gradient of {parameter}")
    hold(found.loss.numel() == 1 and not found.loss.requires_grad, "its loss is no single detached figure")
    _finite(found.loss, "its loss")
