"""Local random generators derived from labels: no global state, the same labels give the same draws."""

import hashlib

import torch


def derive_seed(*labels: str | int) -> int:
    """A 63-bit seed from any number of labels (SHA-256 of their joined text).

    Args:
        labels: for instance `(42, "batch", 7)`. Order matters.

    Returns:
        An integer in [0, 2**63).
    """
    text = "\x1f".join(f"{type(label).__name__}:{label}" for label in labels)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*labels: str | int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed(*labels)`; draws are made on CPU so that a GPU run sees the same data."""
    return torch.Generator(device="cpu").manual_seed(derive_seed(*labels))
