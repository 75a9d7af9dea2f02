"""Checks of a model: what every instrument takes for granted, looked at on a few sequences of random tokens.

Self-patches and patches are made at every layer in one pass: what comes after the block is put back to what it was without a patch,
so that no layer hides another.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from wallprobe import models
from wallprobe.doctor.check import Check, hold, made
from wallprobe.hooks.flow.lens import TOLERANCE as LENS
from wallprobe.hooks.flow.lens import lens
from wallprobe.models import SITES, Loaded, hook_name
from wallprobe.rng import generator
from wallprobe.store import runs

SEQUENCES, LENGTH = 4, 12
ROUNDING = 1e-4  # of the largest entry: what fp32 may differ by where the same thing is computed in another order
Hooks = Mapping[str, Callable[..., Any]]


def examine_model(loaded: Loaded) -> Iterator[Check]:
    """Every check of a model, one after the other; the model is left as it was.

    Args:
        loaded: as `models.load` gives it.

    Returns:
        The checks: hooks fire once, the residual stream is a sum, an activation put back changes nothing to the bit, another one
        changes something, a batch is as its sequences one by one, the logit lens ends in the logits.
    """
    seen = _Seen(loaded)
    for site in SITES:
        yield made(loaded.name, f"{site} fires once in every block", partial(seen.fires, site))
    yield made(loaded.name, "resid_pre + attn_out + mlp_out = resid_post", seen.adds_up)
    for site in SITES:
        yield made(loaded.name, f"{site} put back as it is changes nothing", partial(seen.self_patch, site))
    for site in SITES:
        yield made(loaded.name, f"{site} of another sequence changes what follows", partial(seen.acts, site))
    yield made(loaded.name, "a batch is as its sequences one by one", seen.batched)
    yield made(loaded.name, "the logit lens after the last block gives the logits", seen.lens_ends)
    yield made(loaded.name, "no hook is left behind", seen.left)


class _Seen:
    """A model and what a clean pass shows of it."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        bounds = models.limits(loaded)
        shape = SEQUENCES, min(LENGTH, bounds.context)
        self.tokens = torch.randint(bounds.vocabulary, shape, generator=generator(0, "doctor"))
        self.device = next(loaded.model.parameters()).device
        self.run({})  # a bridge sets up some of its own the first time
        self.before = _hooks(loaded)

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """The hooks of each site that the model has, by layer; no list for a site that it does not have at all."""
        every = {site: [hook_name(layer, site) for layer in range(self.loaded.n_layers)] for site in SITES}
        return {site: names for site, names in every.items() if any(name in self.loaded.points for name in names)}

    @property
    def relaxed(self) -> bool:
        """Is it a fixed point, whose block's hooks show and change nothing?"""
        return self.loaded.kind == runs.EQUILIBRIUM

    def run(self, hooks: Hooks, tokens: Tensor | None = None) -> Tensor:
        """Logits under hooks."""
        model: Any = self.loaded.model
        placed = (self.tokens if tokens is None else tokens).to(self.device)
        options = {} if self.loaded.tokenizer is None else {"attention_mask": torch.ones_like(placed)}
        with torch.no_grad():
            logits: Tensor = model.run_with_hooks(placed, fwd_hooks=list(hooks.items()), **options)
        return logits.detach()

    @cached_property
    def clean(self) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Logits without a patch, and every value that every hook was given."""
        given: dict[str, list[Tensor]] = {name: [] for names in self.names.values() for name in names}

        def keep(name: str) -> Callable[..., None]:
            return lambda value, hook: given[name].append(value.detach().clone())

        return self.run({name: keep(name) for name in given if name in self.loaded.points}), given

    def value(self, layer: int, site: str) -> Tensor:
        """What a hook was first given without a patch."""
        found = self.clean[1][hook_name(layer, site)]
        hold(bool(found), f"{hook_name(layer, site)} did not fire")
        return found[0]

    def fires(self, site: str) -> str | None:
        """Does every layer's hook fire once?"""
        if site not in self.names:
            hold(site == "resid_mid" or self.relaxed, f"{hook_name(0, site)} is not there")
            return None
        for name in self.names[site]:
            times = len(self.clean[1][name])
            hold(times == 1, f"{name} fired {times} times in one forward pass")
        return f"{self.loaded.n_layers} hooks"

    def adds_up(self) -> str | None:
        """The residual identity, at every layer."""
        if self.relaxed:
            return None
        worst = 0.0
        for layer in range(self.loaded.n_layers):
            whole = self.value(layer, "resid_post")
            parts = [self.value(layer, site) for site in ("resid_pre", "attn_out", "mlp_out")]
            apart = _apart(sum(part.double() for part in parts), whole.double())  # type: ignore[arg-type]
            hold(apart <= ROUNDING, f"block {layer} is off by {apart:.1e} of the largest entry; at most {ROUNDING:g} is rounding")
            worst = max(worst, apart)
        return f"off by {worst:.1e} at most"

    def _patched(self, site: str, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits, and what follows each layer's patch, every one in a pass that is otherwise clean."""
        after, hooks, layers = [], dict[str, Callable[..., Any]](), self.loaded.n_layers

        def put(layer: int) -> Callable[..., Tensor]:
            return lambda value, hook: change(self.value(layer, site))

        def put_back(layer: int, where: str) -> Callable[..., Tensor]:
            def hook(value: Tensor, hook: Any) -> Tensor:
                after.append(value.detach().clone())
                return self.value(layer, where)

            return hook

        for layer in range(layers):
            if site == "resid_post":
                hooks[hook_name(layer, site)] = put(layer)
                if layer + 1 < layers:
                    hooks[hook_name(layer + 1, "resid_pre")] = put_back(layer + 1, "resid_pre")
            else:
                hooks[hook_name(layer, site)] = put(layer)
                hooks[hook_name(layer, "resid_post")] = put_back(layer, "resid_post")
        return self.run(hooks), after

    def self_patch(self, site: str) -> str | None:
        """Is an activation put back in its own place as if it had not been touched, to the bit?"""
        if site not in self.names:
            return None
        if self.relaxed:
            for name in self.names[site]:
                logits = self.run({name: lambda value, hook: value.clone()})
                hold(torch.equal(logits, self.clean[0]), f"{name} changed the logits")
            return "0 changed"
        logits, after = self._patched(site, torch.clone)
        for layer, value in enumerate(after):
            where = (layer + 1, "resid_pre") if site == "resid_post" else (layer, "resid_post")
            same = torch.equal(value, self.value(*where))
            hold(same, f"{hook_name(layer, site)} changed {hook_name(*where)} by {_most(value, self.value(*where)):.1e}")
        most = _most(logits, self.clean[0])
        hold(torch.equal(logits, self.clean[0]), f"{hook_name(self.loaded.n_layers - 1, site)} changed the logits by {most:.1e}")
        return "0 changed"

    def acts(self, site: str) -> str | None:
        """Does what stands at a hook reach what follows? Where all sequences have the same there, nothing can be said."""
        if site not in self.names or self.relaxed:
            return None
        logits, after = self._patched(site, lambda value: value.roll(1, 0))
        for layer in range(self.loaded.n_layers):
            own = self.value(layer, site)
            if torch.equal(own, own.roll(1, 0)):
                continue
            last = site == "resid_post" and layer + 1 == self.loaded.n_layers
            where = (layer + 1, "resid_pre") if site == "resid_post" else (layer, "resid_post")
            same = torch.equal(logits, self.clean[0]) if last else torch.equal(after[layer], self.value(*where))
            hold(not same, f"{hook_name(layer, site)} was given another value, and nothing after it changed")
        return f"{self.loaded.n_layers} hooks"

    def batched(self) -> str:
        """Are a sequence's logits the same alone and beside others?"""
        alone = torch.cat([self.run({}, row[None]) for row in self.tokens])
        apart = _apart(alone, self.clean[0])
        hold(apart <= ROUNDING, f"off by {apart:.1e} of the largest logit; at most {ROUNDING:g} is rounding")
        return f"off by {apart:.1e} at most"

    def lens_ends(self) -> str | None:
        """Are the logits what the final norm and the unembedding make of the last residual?"""
        if self.relaxed:
            return None
        apart = _apart(lens(self.loaded, self.value(self.loaded.n_layers - 1, "resid_post")), self.clean[0])
        hold(apart <= LENS, f"off by {apart:.1e} of the largest logit; at most {LENS:g} is rounding")
        return f"off by {apart:.1e} at most"

    def left(self) -> str:
        """Are the hooks those that were there before?"""
        now = _hooks(self.loaded)
        hold(now == self.before, f"{self.before} hooks before, {now} after")
        return f"{now} hooks, as before"


def _hooks(loaded: Loaded) -> int:
    """Functions that are registered on the model's modules."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in loaded.model.modules())


def _most(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest entry."""
    return _most(one, other) / max(float(other.abs().max()), 1e-30)
