"""Weights that may be measured: every number finite. One NaN makes every figure of a model meaningless, and some look sound."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from wallprobe.errors import CheckpointError, StoreError
from wallprobe.store.reading import file_size, told

if TYPE_CHECKING:
    from torch import Tensor

MASKED = ".attn.IGNORE"  # what HookedTransformer's attention puts in the place of masked scores: minus infinity, and no weight


def check_finite(named: "Iterable[tuple[str, Tensor]]", whose: str, remedy: str) -> None:
    """Refuse weights with a NaN or an infinity, at one pass over them and without a copy.

    Args:
        named: parameters by name.
        whose: of what they are, for the message.
        remedy: what to do, for the message.

    Raises:
        CheckpointError: at the first parameter that is not finite; it is named.
    """
    import torch

    for name, tensor in named:
        if not (tensor.is_floating_point() and tensor.numel()) or tensor.is_meta or name.endswith(MASKED):
            continue
        if all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor.detach())):
            continue
        wrong = int((~torch.isfinite(tensor.detach())).sum())
        raise CheckpointError(
            f"{whose}: parameter {name} has {wrong:,} of {tensor.numel():,} numbers that are NaN or infinite, so no figure of it "
            f"would mean anything; {remedy}"
        )


def check_finite_file(path: Path, whose: str, remedy: str) -> None:
    """As `check_finite`, of a safetensors file, one parameter in memory at a time.

    Raises:
        CheckpointError: as `check_finite`, or if the file is not safetensors.
    """
    from safetensors import safe_open

    with _readable(path, whose, remedy), safe_open(path, framework="pt") as handle:
        check_finite(((name, handle.get_tensor(name)) for name in handle.keys()), whose, remedy)  # noqa: SIM118


def load_finite(path: Path, whose: str, remedy: str) -> "dict[str, Tensor]":
    """The parameters in a safetensors file.

    Raises:
        CheckpointError: as `check_finite_file`.
    """
    from safetensors.torch import load_file

    with _readable(path, whose, remedy):
        loaded = dict(load_file(path))
    check_finite(loaded.items(), whose, remedy)
    return loaded


@contextlib.contextmanager
def _readable(path: Path, whose: str, remedy: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        file_size(path, 1 << 50)
        yield
    except (StoreError, SafetensorError, OSError, ValueError, KeyError, MemoryError, RuntimeError) as error:
        why = error if isinstance(error, StoreError) else told(error)
        raise CheckpointError(f"{path} is not a safetensors file of {whose} ({why}); {remedy}") from error
