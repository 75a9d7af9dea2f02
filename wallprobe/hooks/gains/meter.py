"""Gains of any forward pass: what follows a model's norms while it is attached, and the figures they come to, a batch at a time."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach.any_model import of_wrapped
from wallprobe.hooks.attach.modules.attached import Attached
from wallprobe.hooks.gains import definitions
from wallprobe.hooks.gains.definitions import Norms
from wallprobe.hooks.gains.norms import FINAL_TOLERANCE, PARTS, WAITING, block_norms, check_finite, check_identity
from wallprobe.hooks.gains.report import GAINS, LONG_NAMES, NETS, Settings, Subject, prompt_columns
from wallprobe.models import Loaded, Model, hook_name, on_input
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")
EXPECTED = frozenset({*SITES, "attn_in", "mlp_in"})
NORMAL = 1.96  # standard errors on each side of a 95 % interval


class _Tap:
    """Collects one forward pass: a block's vectors until its resid_post has arrived and they are many enough, then only their norms."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.rows: list[dict[str, Tensor]] = []
        self.live: dict[str, Tensor] = {}
        self.waiting: list[dict[str, Tensor]] = []
        self.last: Tensor | None = None
        self.final_error: float | None = None

    def see(self, layer: int, site: str, value: Tensor) -> None:
        """A hook fired."""
        if layer != len(self.rows) + len(self.waiting) or site in self.live:
            raise InstrumentError(
                f"{self.loaded.name}: {site} of layer {layer} fired out of turn or twice in one forward pass; no gain reported"
            )
        if value.ndim != 3 or value.shape[-1] != self.loaded.d_model:
            raise InstrumentError(
                f"{self.loaded.name}: {site} of layer {layer} has shape {tuple(value.shape)}, wanted batch x index x {self.loaded.d_model}"
            )
        self.live[site] = value.detach()
        if site == "resid_post":
            missing = sorted(EXPECTED - self.live.keys())
            if missing:
                raise InstrumentError(
                    f"{self.loaded.name}: {', '.join(missing)} of layer {layer} did not fire; its blocks are laid out differently"
                )
            self.waiting.append(self.live)
            self.live, self.last = {}, value.detach()
            if len(self.waiting) * len(PARTS) * value.numel() >= WAITING:
                self.take()

    def take(self) -> None:
        """Norms of the blocks that wait: few tokens' cost less together."""
        if self.waiting:
            self.rows += block_norms(self.waiting, self.loaded.parallel)
            self.waiting = []

    def see_final(self, value: Tensor) -> None:
        """The final norm was called: its input must be the last block's resid_post (hidden_states[-1] is not)."""
        if self.final_error is not None or self.last is None or self.last.shape != value.shape:
            raise InstrumentError(f"{self.loaded.name}: the final norm fired twice, or not after the last block; no gain reported")
        self.take()
        if self.rows and not bool(self.rows[-1]["resid_post"].isfinite().all()):  # what is not finite stays so
            for layer, row in enumerate(self.rows):
                check_finite(self.loaded.name, row["resid_post"], layer)
        last, given = self.last.cpu().double(), value.detach().cpu().double()
        self.final_error = float(((last - given).norm(dim=-1) / given.norm(dim=-1).clamp_min(1e-30)).max())
        if not self.final_error <= FINAL_TOLERANCE:
            raise InstrumentError(
                f"{self.loaded.name}: the last block's resid_post differs from the final norm's input by {self.final_error:.1e} of it; "
                "it is not the true residual stream, no gain reported"
            )


class NormMeter(Attached):
    """Takes every block's norms of each forward pass while it is attached; a pass ends where the final norm is called.

    A pass raises InstrumentError if a hook did not fire exactly once, if resid_pre + attn_out + mlp_out differs from resid_post by more
    than `IDENTITY_TOLERANCE` of the largest norm, or if the last resid_post is not what the final norm reads.

    Args:
        model: as `models.as_model`.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.last: list[Norms] = []
        self._tap = _Tap(self.loaded)

    def _attach(self, stack: ExitStack) -> None:
        loaded, self._tap, self.last = self.loaded, _Tap(self.loaded), []

        def see(layer: int, site: str) -> Callable[..., None]:
            return lambda value, hook=None: self._tap.see(layer, site, value)

        for layer in range(loaded.n_layers):
            for branch in ("attn", "mlp"):
                stack.callback(on_input(loaded, f"blocks.{layer}.{branch}", see(layer, f"{branch}_in")))
            for site in SITES:
                self.hook(stack, hook_name(layer, site), see(layer, site))
        stack.callback(on_input(loaded, "ln_final", self._end_pass))

    def _end_pass(self, value: Tensor) -> None:
        self._tap.see_final(value)
        self.last = norms_of(self._tap)
        self._tap = _Tap(self.loaded)
        self._take(self.last)

    def _take(self, norms: list[Norms]) -> None:
        """What is done with a pass's norms, one a sequence."""

    def _finish(self) -> None:
        rows = len(self._tap.rows) + len(self._tap.waiting)
        if rows or self._tap.live:
            raise InstrumentError(
                f"{self.loaded.name}: {rows} of {self.loaded.n_layers} blocks fired, and the final norm did not; no gain reported"
            )


def norms_of(tap: _Tap) -> list[Norms]:
    """A whole pass's norms, one a sequence, fp64 on the CPU.

    Raises:
        InstrumentError: if blocks are missing, or if the parts do not add up to the residual stream.
    """
    loaded = tap.loaded
    if len(tap.rows) != loaded.n_layers or tap.final_error is None:
        raise InstrumentError(
            f"{loaded.name}: {len(tap.rows)} of {loaded.n_layers} blocks fired, final norm {tap.final_error}; no gain reported"
        )
    stacked = {name: torch.stack([row[name] for row in tap.rows], dim=1) for name in tap.rows[0]}
    check_identity(loaded.name, stacked["identity_error"])
    return [Norms(**{field.name: stacked[field.name][row] for field in fields(Norms)}) for row in range(len(stacked["resid_pre"]))]


class GainMeter(NormMeter):
    """Gains of all sequences that go through the model while it is attached: online, in fp64, in memory that does not grow.

    It can be entered again, every few steps of a training for instance, and then goes on where it was.

    >>> meter = GainMeter(model)  # doctest: +SKIP
    >>> with meter:  # doctest: +SKIP
    ...     loss = model(tokens, return_type="loss")
    >>> meter.result().summary["final_mlp_gain"]  # doctest: +SKIP

    Args:
        model: as `models.as_model`. Sequences are taken as they are: without padding.
        definition: one of `definitions.DEFINITIONS` that comes from norms.
        tokens: a key of `definitions.REDUCTIONS`.

    Raises:
        UnknownNameError: for an unknown definition or reduction.
        ConfigError: for a definition that takes more than a forward pass (`jacobian`, `spectral`): `wallprobe.gains` has those.
    """

    def __init__(self, model: Model, definition: str = definitions.DEFAULT, tokens: str = "ratio_of_means") -> None:
        self.settings = Settings.make(definition, tokens, "all")
        if self.settings.definition.terms is None:
            known = ", ".join(name for name, one in definitions.DEFINITIONS.items() if one.terms is not None)
            raise ConfigError(f"a meter follows norms, and {definition} takes more than those; use wallprobe.gains, or one of: {known}")
        super().__init__(model)
        self.reset()

    def reset(self) -> None:
        """Forget what was measured."""
        depth = self.loaded.n_layers
        self.sequences = self.tokens = self.passes = 0
        self._count = dict.fromkeys(LONG_NAMES, 0)
        self._mean = {name: torch.zeros(depth, dtype=torch.float64) for name in LONG_NAMES}
        self._spread = {name: torch.zeros(depth, dtype=torch.float64) for name in LONG_NAMES}
        self._error = torch.zeros(depth, dtype=torch.float64)
        self._watch = Stopwatch()

    def _take(self, norms: list[Norms]) -> None:
        make = self.settings.definition.terms
        assert make is not None
        columns = prompt_columns(norms, [make(one, self.loaded.d_model) for one in norms], self.settings)
        self.passes, self.sequences = self.passes + 1, self.sequences + len(norms)
        self.tokens += sum(one.resid_pre.shape[-1] for one in norms)
        self._error = torch.maximum(self._error, columns["identity_error"].amax(dim=-1))
        for name in LONG_NAMES:
            known = columns[name][:, ~columns[name].isnan().any(dim=0)]
            if known.shape[-1]:
                self._add(name, known)

    def _add(self, name: str, values: Tensor) -> None:
        """Chan, Golub and LeVeque 1979: two samples' means and sums of squares become one's."""
        new, old = values.shape[-1], self._count[name]
        mean = values.mean(dim=-1)
        apart, whole = mean - self._mean[name], old + new
        self._spread[name] += (values - mean[:, None]).square().sum(dim=-1) + apart.square() * (old * new / whole)
        self._mean[name] += apart * (new / whole)
        self._count[name] = whole

    def result(self) -> Result:
        """What was measured so far: kind "gain_meter", table by layer; intervals are normal, over sequences.

        Raises:
            InstrumentError: if no pass was made.
        """
        if not self.passes:
            raise InstrumentError(f"no pass of {self.loaded.name} was seen; call it while the meter is on")
        variables: dict[str, Any] = {}
        for name, long_name in LONG_NAMES.items():
            count = self._count[name]
            mean = self._mean[name] if count else torch.full_like(self._mean[name], math.nan)
            unit = "residual units" if name.endswith("_norm") else "1"
            variables[name] = (("layer",), mean.numpy().copy(), unit, f"{long_name}, mean over sequences")
            if name in (*GAINS, *NETS):
                half = NORMAL * (self._spread[name] / (count - 1) / count).sqrt() if count > 1 else torch.full_like(mean, math.nan)
                for end, bound in (("low", mean - half), ("high", mean + half)):
                    variables[f"{name}_{end}"] = (("layer",), bound.numpy(), unit, f"{long_name}, 95 % normal interval over sequences")
        variables["identity_error"] = (("layer",), self._error.numpy().copy(), "1", "largest |x + A + M - x'| over their largest norm")
        loaded, chosen = self.loaded, self.settings.definition
        told = {"model": loaded.name, "definition": chosen.name, "tokens": self.settings.tokens}
        data = dataset({"layer": list(range(loaded.n_layers))}, variables, **told)
        subject = Subject.of(loaded)
        manifest = provenance(
            config=dict(told),
            device=subject.device,
            dtype="float32, sums in float64",
            watch=self._watch,
            subject=subject.label,
            weight_hash=loaded.current_hash,
            formula=chosen.formula,
            sequences=self.sequences,
        )
        return of_wrapped(Result("gain_meter", data, ("layer",), self._summary(variables), manifest), loaded)

    def _summary(self, variables: dict[str, Any]) -> dict[str, Any]:
        found = {name: definitions.contracting(torch.as_tensor(variables[f"{name}_gain"][1])) for name in ("attn", "mlp")}
        final = float(variables["mlp_gain"][1][-1])
        told: dict[str, Any] = {"model": self.loaded.name, "definition": self.settings.definition.name, "tokens": self.settings.tokens}
        told |= {"n_passes": self.passes, "n_sequences": self.sequences, "n_tokens": self.tokens}
        told |= {"attn_contracting": found["attn"], "mlp_contracting": found["mlp"], "final_mlp_gain": final}
        told["residual_identity_error"] = float(self._error.max())
        attn = float(variables["attn_gain"][1][-1])
        told["finding"] = f"Over {self.sequences} sequences the last layer's gain is {attn:.3g} for attention and {final:.3g} for the MLP."
        return told
