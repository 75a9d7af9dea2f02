"""Bootstrap over samples (sequences, pairs, prompts), vectorised and seeded."""

import torch
from jaxtyping import Float
from torch import Tensor

DRAWS = 1000


def resamples(samples: int, generator: torch.Generator, draws: int = DRAWS) -> Float[Tensor, "draws samples"]:
    """Weights of `draws` bootstrap resamples of `samples` items: each row sums to 1 (fp64)."""
    chosen = torch.randint(samples, (draws, samples), generator=generator)
    counts = torch.zeros(draws, samples, dtype=torch.float64)
    counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
    return counts / samples


def interval(draws: Float[Tensor, "draws *cells"], level: float = 0.95) -> tuple[Float[Tensor, "*cells"], Float[Tensor, "*cells"]]:
    """Percentile interval over the first dim, NaN draws left out.

    Returns:
        Lower and upper bound, each of the remaining shape.
    """
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=draws.dtype)
    low, high = torch.nanquantile(draws, edges, dim=0)
    return low, high


def masked_means(weights: Float[Tensor, "draws samples"], values: Float[Tensor, "samples cells"]) -> Float[Tensor, "draws cells"]:
    """Weighted mean of each column over the samples where it is not NaN; NaN where no sample counts."""
    present = ~values.isnan()
    total = weights @ torch.where(present, values, 0.0)
    return total / (weights @ present.to(weights.dtype))
