"""Every norm that gains are made of, from a block's six vectors, and the checks they pass before any gain is reported."""

import functools
import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from wallprobe.errors import InstrumentError

IDENTITY_TOLERANCE = 1e-4  # relative; fp32 sums of two terms stay below 1e-6
FINAL_TOLERANCE = 1e-6
WAITING = 1 << 20  # numbers of blocks whose norms wait to be taken together

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
