"""Sites of a block, and what a patch at one of them makes of the residual stream above it.

Whatever the site, a patch at one index changes one vector of the residual stream after the block (for `resid_pre`: before it), so
that a forward pass from the middle starts there. What the rest of the block makes of the patched vector is computed for it alone.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach.resume import Clean, Entry
from wallprobe.hooks.attach.stacks import Stack

HEADS = "heads"  # every head's part of z, one site each


def head_of(site: str) -> int | None:
    """The head whose part of `z` a site is; None for others."""
    return int(site[2:]) if site.startswith("z.") and site[2:].isdecimal() else None


def module_site(site: str) -> str:
    """The site whose hook this one is seen at: `z` for a head's part of it."""
    return site if head_of(site) is None else "z"


def expand(names: Sequence[str], n_heads: int) -> tuple[str, ...]:
    """Sites as asked for, `heads` written out.

    Raises:
        ConfigError: for a head that the model does not have.
    """
    found = [one for name in names for one in ([f"z.{head}" for head in range(n_heads)] if name == HEADS else [name])]
    wrong = [name for name in found if (head := head_of(name)) is not None and head >= n_heads]
    if wrong:
        raise ConfigError(f"site {wrong[0]} does not exist: there are {n_heads} heads; give z.0 to z.{n_heads - 1}, or heads")
    return tuple(dict.fromkeys(found))


@runtime_checkable
class Headed(Protocol):
    """What has heads."""

    d_heads: int
    n_heads: int


def part_of(stack: Headed, head: int) -> slice:
    """Where a head's output lies among those side by side."""
    width = stack.d_heads // stack.n_heads
    return slice(head * width, (head + 1) * width)


def whole(
    stack: Stack, clean: Clean, layer: int, index: int, site: str, patched: Float[Tensor, "pair width"]
) -> Float[Tensor, "pair wide"]:
    """What stands at the site's hook with the patch in it: of a head, all of them."""
    head = head_of(site)
    if head is None:
        return patched
    made = clean.z[layer][:, index].clone()
    made[:, part_of(stack, head)] = patched
    return made


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
    head = head_of(site)
    if head is not None:
        return clean.z[layer][:, index, part_of(stack, head)]
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
    if module_site(site) == "z":
        site, patched = "z", whole(stack, clean, layer, index, site, patched)
    middle = patched if site == "resid_mid" else before + (stack.write(layer, patched[:, None])[:, 0] if site == "z" else patched)
    return Entry(layer + 1, middle + (mlp if stack.parallel else stack.mlp(layer, middle[:, None])[:, 0]))
