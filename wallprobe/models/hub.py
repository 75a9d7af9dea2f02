"""A model's files from the hub, or from the local cache of it: settings, tokenizer and safetensors, never code and never pickles."""

from pathlib import Path
from typing import Any

from wallprobe.errors import CheckpointError, UnknownNameError, one_line
from wallprobe.models.guard import reading
from wallprobe.models.loaded import quiet
from wallprobe.models.sources import unreachable

WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.tiktoken", "*.jinja")
UNWANTED = ("*/*", "consolidated*")  # other formats, and Mistral's second copy of the weights


def fetch(source: str, *, runs: bool = True) -> Path:
    """The folder of a hub id's files.

    Args:
        source: `owner/name`, or `owner/name@revision`.
        runs: whether the caller also takes the name of a run, for the error.

    Raises:
        UnknownNameError: if it is no hub id, or cannot be had.
        CheckpointError: if it has no safetensors.
    """
    repository, _, revision = source.partition("@")
    with quiet():
        import huggingface_hub.utils
        from huggingface_hub import snapshot_download

        utils: Any = huggingface_hub.utils  # re-exports without saying so
    try:
        utils.validate_repo_id(repository)
    except utils.HFValidationError as error:
        raise UnknownNameError(f"'{source}' is no folder here and no hub id ({one_line(error)})") from error
    try:
        with quiet(), reading(source, network=True):
            patterns: dict[str, Any] = {"allow_patterns": list(WANTED), "ignore_patterns": list(UNWANTED)}
            folder = Path(snapshot_download(repository, revision=revision or None, **patterns))
    except Exception as error:
        raise unreachable(source, error, runs=runs) from error
    if not any(folder.glob("*.safetensors")):
        at = f" --revision {revision}" if revision else ""
        raise CheckpointError(
            f"model '{source}' has no safetensors to fetch; where its weights are pickles (pytorch_model.bin), which are not loaded: "
            f"hf download {repository}{at} --local-dir FOLDER, then wallprobe convert FOLDER"
        )
    return folder
