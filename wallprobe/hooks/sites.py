"""Sites of a block, and what a patch at one of them makes of the residual stream above it.

Whatever the site, a patch at one index changes one vector of the residual stream after the block (for `resid_pre`: before it), so
that a forward pass from the middle starts there. What the rest of the block makes of the patched vector is computed for it alone.
"""

from jaxtyping import Float
from torch import Tensor

from wallprobe.errors import InstrumentError
from wallprobe.hooks.resume import Clean, Entry
from wallprobe.hooks.stacks import Stack


def value_at(stack: Stack, clean: Clean, layer: int, index: int, site: str) -> Float[Tensor, "pair width"]:
    """What stands at a site.

    Raises:
        InstrumentError: for resid_mid of a parallel block, which has none.
    """
    if site == "resid_pre":
        return clean.residual[layer][:, index]
    if site == "resid_post":
        return clean.residual[layer + 1][:, index]
    if site == "resid_mid":
        if stack.parallel:
            raise InstrumentError(
                "attention and MLP read the same residual in this model: there is no resid_mid; use resid_pre or resid_post"
            )
        return clean.residual[layer][:, index] + clean.attn[layer][:, index]
    kept = {"attn_out": clean.attn, "mlp_out": clean.mlp, "z": clean.z}[site]
    return kept[layer][:, index]


def enter(stack: Stack, clean: Clean, layer: int, index: int, site: str, patched: Float[Tensor, "pair width"]) -> Entry:
    """The patched residual with the block it enters.

    Args:
        stack: the model.
        clean: of the sequences that are patched.
        layer: of the patch.
        index: of the patch.
        site: of the patch.
        patched: what to put there.
    """
    if site == "resid_pre":
        return Entry(layer, patched)
    if site == "resid_post":
        return Entry(layer + 1, patched)
    before, attn, mlp = (part[layer][:, index] for part in (clean.residual, clean.attn, clean.mlp))
    if site == "mlp_out":
        return Entry(layer + 1, before + attn + patched)
    middle = patched if site == "resid_mid" else before + (stack.write(layer, patched[:, None])[:, 0] if site == "z" else patched)
    return Entry(layer + 1, middle + (mlp if stack.parallel else stack.mlp(layer, middle[:, None])[:, 0]))
