"""Layer gains: how loud each sub-layer is against what it reads, on raw weights (the gains study, 6.1).

One forward pass a batch of equal-length prompts; nothing but norms leaves the hooks, so memory does not grow with width or depth.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.errors import InstrumentError
from wallprobe.hooks.attach.any_model import on_prompts
from wallprobe.hooks.attach.prompt_sets import PromptSet
from wallprobe.hooks.attach.prompt_sets import batches as batches
from wallprobe.hooks.gains import definitions
from wallprobe.hooks.gains.definitions import Norms
from wallprobe.hooks.gains.operators import operator_terms
from wallprobe.hooks.gains.report import Settings, Subject, report
from wallprobe.models import Loaded, hook_name, on_input
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result

IDENTITY_TOLERANCE = 1e-4  # relative; fp32 sums of two terms stay below 1e-6
FINAL_TOLERANCE = 1e-6
SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")
WAITING = 1 << 20  # numbers of blocks whose norms wait to be taken together
HOOK_LEVEL = 1 << 20  # ours alone, so that removing them leaves others' hooks in place
EXPECTED = frozenset({*SITES, "attn_in", "mlp_in"})


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
        self.live[site] = value
        if site == "resid_post":
            missing = sorted(EXPECTED - self.live.keys())
            if missing:
                raise InstrumentError(
                    f"{self.loaded.name}: {', '.join(missing)} of layer {layer} did not fire; its blocks are laid out differently"
                )
            self.waiting.append(self.live)
            self.live, self.last = {}, value
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


# Rows: what a norm is of, as a sum of x, what attention is given, A, what the MLP is given, M and x'.
SUMS = {
    "resid_pre": (1, 0, 0, 0, 0, 0),
    "attn_in": (0, 1, 0, 0, 0, 0),
    "attn_out": (0, 0, 1, 0, 0, 0),
    "attn_sum": (1, 0, 1, 0, 0, 0),
    "mlp_in": (0, 0, 0, 1, 0, 0),
    "mlp_out": (0, 0, 0, 0, 1, 0),
    "resid_post": (0, 0, 0, 0, 0, 1),
    "update": (0, 0, 1, 0, 1, 0),
    "missing": (1, 0, 1, 0, 1, -1),
}
BRANCH = {  # whether blocks are parallel -> what the MLP's branch reads, and that with the MLP's output added
    True: {"mlp_read": (1, 0, 0, 0, 0, 0), "mlp_sum": (1, 0, 0, 0, 1, 0)},
    False: {"mlp_read": (1, 0, 1, 0, 0, 0), "mlp_sum": (1, 0, 1, 0, 1, 0)},
}
PARTS = ("resid_pre", "attn_in", "attn_out", "mlp_in", "mlp_out", "resid_post")


@functools.cache
def norm_forms(parallel: bool) -> tuple[tuple[str, ...], Float[Tensor, "product form"]]:
    """Names of the norms, and what makes their squares of the six inner products; then <A, M>, and <M, what its branch reads>."""
    wanted = SUMS | BRANCH[parallel]
    sums = {name: torch.tensor(parts, dtype=torch.float64) for name, parts in wanted.items()}
    twice = [(name, name) for name in wanted] + [("attn_out", "mlp_out"), ("mlp_out", "mlp_read")]
    return tuple(wanted), torch.stack([torch.outer(sums[one], sums[other]).flatten() for one, other in twice], dim=1)


def block_norms(blocks: Sequence[Mapping[str, Tensor]], parallel: bool) -> list[dict[str, Tensor]]:
    """Each block's norms `[batch, index]`, from fp32 vectors lifted to fp64 on the CPU (mps has no fp64).

    All of them come from the six vectors' inner products, in one product: an operation a norm would cost as much as the block.
    Of what the parts miss of the sum, the products' rounding leaves 1e-8 of the largest norm unseen, a tenth of what fp32 sums miss.
    Many tokens are taken some at a time, so that what is lifted stays in the cache.
    """
    whole = blocks[0]["resid_post"]
    some = max(1, WAITING // (len(blocks) * len(PARTS) * whole[:1].numel()))
    if len(whole) > some:
        pieces = [
            block_norms([{site: live[site][start : start + some] for site in PARTS} for live in blocks], parallel)
            for start in range(0, len(whole), some)
        ]
        return [{name: torch.cat([piece[place][name] for piece in pieces]) for name in pieces[0][place]} for place in range(len(blocks))]
    vectors = torch.stack([live[site].detach() for live in blocks for site in PARTS], dim=-2).cpu().double()
    vectors = vectors.view(*vectors.shape[:-2], len(blocks), len(PARTS), -1)
    wanted, forms = norm_forms(parallel)
    found = named(wanted, (vectors @ vectors.mT).flatten(-2) @ forms)
    return [{name: value[..., place] for name, value in found.items()} for place in range(len(blocks))]


def named(wanted: tuple[str, ...], values: Float[Tensor, "*token form"]) -> dict[str, Tensor]:
    """Norms by name, cosines, and the identity error relative to the largest norm.

    Args:
        wanted: names of the norms.
        values: of `norm_forms`.
    """
    norms, (attn_mlp, mlp_read) = values[..., : len(wanted)].clamp_min(0.0).sqrt(), values[..., len(wanted) :].unbind(dim=-1)
    found = dict(zip(wanted, norms.unbind(dim=-1), strict=True))
    found["attn_mlp_cosine"] = attn_mlp / (found["attn_out"] * found["mlp_out"]).clamp_min(1e-30)
    found["mlp_resid_cosine"] = mlp_read / (found["mlp_read"] * found["mlp_out"]).clamp_min(1e-30)
    # Relative to the largest term: where an MLP erases a massive activation, fp32 rounding is that term's, not the small sum's.
    largest = torch.stack([found[name] for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")]).amax(dim=0)
    found["identity_error"] = found.pop("missing") / largest.clamp_min(1e-30)
    return found


def measure_norms(loaded: Loaded, tokens: Int[Tensor, "batch index"]) -> list[Norms]:
    """Every norm the gains are made of, one forward pass.

    Args:
        loaded: the model.
        tokens: prompts of one length, no padding.

    Returns:
        One `Norms` a prompt, fp64, on the CPU.

    Raises:
        InstrumentError: if a hook did not fire exactly once, if resid_pre + attn_out + mlp_out differs from resid_post by more than
            `IDENTITY_TOLERANCE` of the largest norm, or if the last resid_post is not what the final norm reads.
    """
    model, tap = cast(Any, loaded.model), _Tap(loaded)

    def hook(layer: int, site: str) -> Callable[..., None]:
        return lambda value, hook=None: tap.see(layer, site, value)

    # The bridge's own `hooks` resolves every alias of the model again for each hook it adds (13 ms each on 30 layers).
    points = loaded.points
    device = next(loaded.model.parameters()).device
    placed = tokens.to(device)
    # A stated mask: without it some models take a token that equals the padding id for padding.
    options = {} if loaded.tokenizer is None else {"attention_mask": torch.ones_like(placed)}
    with ExitStack() as stack:
        for layer in range(loaded.n_layers):
            for branch in ("attn", "mlp"):
                stack.callback(on_input(loaded, f"blocks.{layer}.{branch}", hook(layer, f"{branch}_in")))
            for site in SITES:
                point = points.get(hook_name(layer, site))
                if point is None:
                    raise InstrumentError(
                        f"{loaded.name} has no {hook_name(layer, site)}; its blocks are laid out differently, no gain reported"
                    )
                point.add_hook(hook(layer, site), level=HOOK_LEVEL)
                stack.callback(point.remove_hooks, "fwd", level=HOOK_LEVEL)
        stack.callback(on_input(loaded, "ln_final", tap.see_final))
        stack.enter_context(torch.inference_mode())
        model(placed, return_type=None, **options)
    if len(tap.rows) != loaded.n_layers or tap.final_error is None:
        raise InstrumentError(
            f"{loaded.name}: {len(tap.rows)} of {loaded.n_layers} blocks fired, final norm {tap.final_error}; no gain reported"
        )
    stacked = {name: torch.stack([row[name] for row in tap.rows], dim=1) for name in tap.rows[0]}
    check_identity(loaded.name, stacked["identity_error"])
    return [Norms(**{field.name: stacked[field.name][row] for field in fields(Norms)}) for row in range(len(tokens))]


def check_finite(name: str, norms: Float[Tensor, "batch index"], layer: int) -> None:
    """Raise InstrumentError where a block's output is NaN or infinite."""
    if not bool(norms.isfinite().all()):
        raise InstrumentError(f"{name}: the residual is not finite from layer {layer} on; its weights hold NaN or inf, no gain reported")


def check_identity(name: str, error: Float[Tensor, "batch layer index"]) -> None:
    """Raise InstrumentError where the parts do not add up to the residual stream."""
    worst = error.amax(dim=(0, 2))
    if not bool((worst <= IDENTITY_TOLERANCE).all()):
        layer = int(worst.nan_to_num(math.inf).argmax())
        raise InstrumentError(
            f"{name}: resid_pre + attn_out + mlp_out misses resid_post by {float(worst[layer]):.1e} of the norm at layer {layer} "
            f"(at most {IDENTITY_TOLERANCE:.0e}); a hook does not carry what is added to the residual, no gain reported"
        )


def _measure_all(loaded: Loaded, prompts: PromptSet, on_progress: Callable[[int, int], None] | None) -> list[Norms]:
    found: dict[int, Norms] = {}
    for members in batches(prompts):
        norms = measure_norms(loaded, torch.stack([prompts.tokens[index] for index in members]))
        found |= dict(zip(members, norms, strict=True))
        if on_progress is not None:
            on_progress(len(found), len(prompts.tokens))
    return [found[index] for index in range(len(prompts.tokens))]


@on_prompts
def gains(
    loaded: Loaded,
    prompts: PromptSet,
    definition: str = definitions.DEFAULT,
    tokens: str = "ratio_of_means",
    positions: str = "all",
    *,
    seed: int = 42,
    draws: int = 1000,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Gain of every attention and MLP sub-layer, with and without attention-sink tokens.

    G_attn(l) = mean_t |A_l| / mean_t |LN1(x_l)| and G_mlp(l) = mean_t |M_l| / mean_t |LN2(x_l)| per prompt, then the mean over prompts:
    definition `sublayer`, the study's, and the default so that its figures are reproduced. It is no property of the function computed
    (scaling a norm up and the weights behind it down changes it): use `sublayer_unit` across model families. Others:
    `definitions.DEFINITIONS`. Source: the gains study, 6.1, and its author's code.

    Args:
        loaded: the model, raw weights, fp32.
        prompts: see `prompt_sets.prompt_set`.
        definition: a key of `definitions.DEFINITIONS`.
        tokens: a key of `definitions.REDUCTIONS`.
        positions: a key of `definitions.POSITIONS`: which of them the regime and the bottleneck are read from. All are measured.
        seed: of the bootstrap over prompts, and of the random directions of `jacobian`.
        draws: bootstrap resamples.
        on_progress: told (prompts done, prompts in all).

    Returns:
        Result of kind "gains", table by layer; gains are ratios without unit. `*_no_sink` leaves out tokens whose residual is above
        10 times the prompt's median at any layer.

    Raises:
        UnknownNameError: for an unknown definition, reduction or choice of positions.
        InstrumentError: as `measure_norms`.
    """
    settings = Settings.make(definition, tokens, positions, seed, draws)
    watch = Stopwatch()
    norms = _measure_all(loaded, prompts, on_progress)
    if settings.definition.terms is None:
        terms = operator_terms(loaded, prompts, settings.definition, list(batches(prompts)), seed)
    else:
        terms = [settings.definition.terms(one, loaded.d_model) for one in norms]
    return report(Subject.of(loaded), prompts, settings, norms, terms, watch)
