"""What is said of a model that cannot be had, or should not: checks on sources and configurations, without transformer-lens."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wallprobe.errors import CheckpointError, UnknownNameError, one_line
from wallprobe.store.storage import sha256_file

ENCODERS = (
    "bert",
    "roberta",
    "distilbert",
    "albert",
    "electra",
    "xlm-roberta",
    "camembert",
    "mpnet",
    "deberta",
    "deberta-v2",
    "modernbert",
)


def hash_files(paths: list[Path]) -> str | None:
    """One SHA-256 over the files' own hashes, in name order."""
    if not paths:
        return None
    if len(paths) == 1:
        return sha256_file(paths[0])
    return hashlib.sha256("".join(sha256_file(path) for path in sorted(paths)).encode()).hexdigest()


def check_complete(source: str, loading: Mapping[str, Any]) -> None:
    """Refuse what transformers only warns about: parameters that are not in the file, or of another shape there, are filled at random."""
    for name, found, wanted in sorted((str(one[0]), *one[1:3]) for one in loading.get("mismatched_keys", ())):
        raise CheckpointError(
            f"{source} holds {name} of shape {tuple(found)} where its config asks for {tuple(wanted)}: weights and config belong to two "
            "models; fetch it again"
        )
    missing = sorted(str(name) for name in loading.get("missing_keys", ()))
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} parameters its config asks for ({', '.join(missing[:3])}, ...); fetch it again"
        )


def unreachable(source: str, error: Exception, *, runs: bool = True) -> UnknownNameError:
    """What to say of a hub id that gave no model; `runs` where the name of a run would do as well."""
    if "gated" in f"{type(error).__name__} {error}".lower():
        return UnknownNameError(f"model '{source}' is gated: accept its terms on the hub and log in (hf auth login), then run this again")
    return UnknownNameError(
        f"model '{source}' could not be fetched: it is unknown to the hub, not in the local cache, or the network is down "
        f"({one_line(error)}); give a hub id, a local folder{', a .gguf file or a run name' if runs else ' or a .gguf file'}"
    )


def refuse_encoder(source: str, config: Any) -> None:
    """Refuse what transformers would load as a decoder all the same.

    Raises:
        CheckpointError: if the configuration is an encoder's.
    """
    kind = str(getattr(config, "model_type", ""))
    if kind in ENCODERS and not getattr(config, "is_decoder", False):
        raise CheckpointError(f"{source} is an encoder ({kind}): it predicts no next token; give a causal decoder")
