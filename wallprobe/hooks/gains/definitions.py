"""Gains from norms: the definitions, which tokens count, and the means. Knows no model; every array here is fp64.

`sublayer` is the gains study's (the author's code); the trouble with each definition stands with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wallprobe.errors import look_up

SINK_FACTOR = 10.0
DEFAULT = "sublayer"


@dataclass(frozen=True)
class Norms:
    """Euclidean norms of one prompt's vectors, and three cosines' worth of angles, by layer and token.

    Attributes:
        resid_pre: x, the residual a block reads.
        attn_in: what the attention module is given (LN1's output in pre-norm models).
        attn_out: A, what attention adds to the residual.
        attn_sum: x + A.
        mlp_read: the residual the MLP's branch reads: x in parallel blocks, x + A in sequential ones.
        mlp_in: what the MLP module is given (LN2's output in pre-norm models).
        mlp_out: M, what the MLP adds.
        mlp_sum: `mlp_read` + M.
        resid_post: x + A + M.
        update: A + M.
        attn_mlp_cosine: between A and M.
        mlp_resid_cosine: between M and the residual its branch reads; near -1 where the MLP erases.
        identity_error: |x + A + M - x'| over the largest of the four norms.
    """

    resid_pre: Float[Tensor, "layer token"]
    attn_in: Float[Tensor, "layer token"]
    attn_out: Float[Tensor, "layer token"]
    attn_sum: Float[Tensor, "layer token"]
    mlp_read: Float[Tensor, "layer token"]
    mlp_in: Float[Tensor, "layer token"]
    mlp_out: Float[Tensor, "layer token"]
    mlp_sum: Float[Tensor, "layer token"]
    resid_post: Float[Tensor, "layer token"]
    update: Float[Tensor, "layer token"]
    attn_mlp_cosine: Float[Tensor, "layer token"]
    mlp_resid_cosine: Float[Tensor, "layer token"]
    identity_error: Float[Tensor, "layer token"]


@dataclass(frozen=True)
class Terms:
    """Numerators and denominators of both branches' gains, by layer and token."""

    attn_over: Float[Tensor, "layer token"]
    attn_under: Float[Tensor, "layer token"]
    mlp_over: Float[Tensor, "layer token"]
    mlp_under: Float[Tensor, "layer token"]


@dataclass(frozen=True)
class Definition:
    """One meaning of "gain".

    Attributes:
        name: what `--gain` calls it.
        formula: for tables and manifests.
        against: what the output is held against, in words.
        terms: (norms, d_model) -> numerators and denominators; None where they do not come from norms.
        source: "norms" of one forward pass, "tangents" of it, or the "weights" alone.
        power: of the terms: 2 where they are squares, and the gain is the root of their ratio.
    """

    name: str
    formula: str
    against: str
    terms: Callable[[Norms, int], Terms] | None
    source: str = "norms"
    power: int = 1


def _unit(norms: Norms, d_model: int) -> Terms:
    width = torch.full_like(norms.attn_out, d_model**0.5)
    return Terms(norms.attn_out, width, norms.mlp_out, width)


DEFINITIONS: Mapping[str, Definition] = MappingProxyType(
    {
        definition.name: definition
        for definition in (
            Definition(
                "sublayer",
                "|out| / |LN(x)|, affine included",
                "the module's own input",
                lambda norms, _: Terms(norms.attn_out, norms.attn_in, norms.mlp_out, norms.mlp_in),
            ),
            Definition("sublayer_unit", "|out| / sqrt(d_model)", "a normalised vector without the norm's scale", _unit),
            Definition(
                "update_ratio",
                "|out| / |residual that branch reads|",
                "the residual its branch reads",
                lambda norms, _: Terms(norms.attn_out, norms.resid_pre, norms.mlp_out, norms.mlp_read),
            ),
            Definition(
                "resid_ratio",
                "|x + out| / |x|, x the residual that branch reads",
                "the residual before the addition, the residual after it being the output",
                lambda norms, _: Terms(norms.attn_sum, norms.resid_pre, norms.mlp_sum, norms.mlp_read),
            ),
            Definition(
                "jacobian",
                "sqrt(E|Jv|^2 / E|v|^2), J of residual -> out with the norm in it",
                "a random change of the residual",
                None,
                source="tangents",
                power=2,
            ),
            Definition(
                "spectral",
                "largest over heads of sigma_max(W_O W_V); sigma_max(W_out) sigma_max(W_in)",
                "the weights alone, no token seen",
                None,
                source="weights",
            ),
        )
    }
)


def get_definition(name: str) -> Definition:
    """The definition of that name.

    Raises:
        UnknownNameError: if there is none.
    """
    return look_up("gain definition", name, DEFINITIONS)


def times_median(norms: Norms) -> Float[Tensor, " token"]:
    """Each token's residual norm as a multiple of the prompt's median, at the layer where that is largest.

    Args:
        norms: of one prompt. The residual is looked at before every block and after the last; the median is over the prompt's tokens.
    """
    residual = torch.cat([norms.resid_pre, norms.resid_post[-1:]])
    return (residual / residual.median(dim=-1, keepdim=True).values.clamp_min(1e-30)).amax(dim=0)


def sinks(norms: Norms) -> Bool[Tensor, " token"]:
    """Tokens above `SINK_FACTOR` times the median at any layer (massive activations, Sun et al. 2024, arXiv 2402.17762)."""
    return times_median(norms) > SINK_FACTOR


Reduction = Callable[[Float[Tensor, "layer token"], Float[Tensor, "layer token"]], Float[Tensor, " layer"]]
# How tokens become one figure a prompt: of numerators and denominators, only the tokens that count.
REDUCTIONS: Mapping[str, tuple[str, Reduction]] = MappingProxyType(
    {
        "ratio_of_means": ("ratio of token means (the gains study's)", lambda over, under: over.mean(dim=-1) / under.mean(dim=-1)),
        "mean_of_ratios": ("mean over tokens of each one's ratio", lambda over, under: (over / under).mean(dim=-1)),
        "geomean": ("geometric mean over tokens of each one's ratio", lambda over, under: (over / under).log().mean(dim=-1).exp()),
        "median": ("median over tokens of each one's ratio", lambda over, under: (over / under).quantile(0.5, dim=-1)),
    }
)
# suffix of a variable -> which tokens count
POSITIONS: Mapping[str, str] = MappingProxyType(
    {
        "all": "all positions",
        "no_sink": "without sink tokens",
        "no_first": "without the first token",
        "last": "the last token alone",
    }
)


def get_reduction(name: str) -> tuple[str, Reduction]:
    """What a reduction is in words, and the function.

    Raises:
        UnknownNameError: if there is none of that name.
    """
    return look_up("token reduction", name, REDUCTIONS)


def get_positions(name: str) -> str:
    """What a choice of positions is in words.

    Raises:
        UnknownNameError: if there is none of that name.
    """
    return look_up("positions", name, POSITIONS)


def keeps(norms: Norms) -> dict[str, Bool[Tensor, " token"]]:
    """Which tokens of a prompt each choice of positions keeps."""
    sink = sinks(norms)
    place = torch.arange(len(sink))
    return {"all": torch.ones_like(sink), "no_sink": ~sink, "no_first": place > 0, "last": place == len(sink) - 1}


def reduce(
    reduction: Reduction,
    over: Float[Tensor, "layer token"],
    under: Float[Tensor, "layer token"],
    keep: Bool[Tensor, " token"],
    power: int = 1,
) -> Float[Tensor, " layer"]:
    """One figure a layer from the kept tokens, NaN if none is kept; the root of the given power is taken last."""
    if not bool(keep.any()):
        return torch.full((len(over),), torch.nan, dtype=over.dtype)
    found = reduction(over[:, keep], under[:, keep])
    return found if power == 1 else found ** (1 / power)


def share(over: Float[Tensor, "layer token"], chosen: Bool[Tensor, " token"]) -> Float[Tensor, " layer"]:
    """The chosen tokens' part of the numerator, in [0, 1]."""
    return over[:, chosen].sum(dim=-1) / over.sum(dim=-1)


def contracting(gain: Float[Tensor, " layer"]) -> str | None:
    """How many layers' gains are below 1, as "k/L"; None if a gain is unknown."""
    return None if bool(gain.isnan().any()) else f"{int((gain < 1.0).sum())}/{len(gain)}"
