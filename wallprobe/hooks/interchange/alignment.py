"""Maps from one network's residual basis into another's, fitted on sequences that the interchange does not use.

`procrustes` is a rotation with translation, `ridge` any affine map; R^2 is measured on a further held-out part.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.hooks.attach.interventions import AlignedSwap

ALIGNMENTS = ("none", "procrustes", "ridge")
RIDGE = 1e-3  # of the mean eigenvalue of the source covariance


@dataclass(frozen=True)
class Alignment:
    """A fitted map and its held-out R^2 (1 is perfect, 0 no better than the mean)."""

    swap: AlignedSwap
    held_out_r2: float


def fit(kind: str, source: Float[Tensor, "sample d_src"], target: Float[Tensor, "sample d_dst"], held_out: float = 0.25) -> Alignment:
    """Fit a map source -> target on the first part of the samples and score it on the last.

    Args:
        kind: "procrustes" or "ridge".
        source: the donor network's activations.
        target: the receiving network's activations on the same sequences, in the same order.
        held_out: fraction kept for R^2.

    Raises:
        ConfigError: for another kind, or for procrustes between different widths.
    """
    if kind not in ALIGNMENTS[1:]:
        raise ConfigError(f"alignment '{kind}' is none of {', '.join(ALIGNMENTS)}")
    if kind == "procrustes" and source.shape[1] != target.shape[1]:
        raise ConfigError(f"procrustes needs equal widths, here {source.shape[1]} and {target.shape[1]}; use --align ridge")
    split = round(len(source) * (1 - held_out))
    x, y = source[:split].double(), target[:split].double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    if kind == "procrustes":
        left, _, right = torch.linalg.svd(x.mT @ y)
        matrix = left @ right
    else:
        gram = x.mT @ x
        penalty = RIDGE * gram.diagonal().mean() * torch.eye(gram.shape[0], dtype=gram.dtype)
        matrix = torch.linalg.solve(gram + penalty, x.mT @ y)
    swap = AlignedSwap(matrix.float(), (y_mean - x_mean @ matrix).float())
    truth = target[split:].double()
    residual = (truth - (source[split:].double() @ matrix + y_mean - x_mean @ matrix)).square().sum()
    spread = (truth - truth.mean(0)).square().sum()
    return Alignment(swap, float(1 - residual / spread))
