"""A model and what it is diagnosed on: batches with their supervised labels, and the loss of its own evaluation.

A wall run reads sequences of its task, its loss is on the positions cross-entropy trained; any other decoder reads prompts (one a row,
padded at the right, where attention cannot look) or windows of a text file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.hooks.attach.prompt_sets import encode
from wallprobe.models import Limits, Loaded, limits
from wallprobe.models.equilibrium import EqConfig, PlainEquilibrium, fill
from wallprobe.rng import generator
from wallprobe.store import runs
from wallprobe.store import texts as store_texts
from wallprobe.tasks import text as texts
from wallprobe.tasks.registry import from_manifest
from wallprobe.training.estimators.protocol import Batch
from wallprobe.training.wall.evaluate import predict

PROMPTS = "mixed"
HELD_OUT = 512  # sequences of a run's task for `val`
WINDOW = 64  # tokens of a window of text


@dataclass(frozen=True)
class Wanted:
    """What to read a model on.

    Attributes:
        batches: how many.
        size: sequences a batch; None for 32 of a run's task, a batch of a run's recipe where that reads text, 4 windows of a text file,
            and as many prompts as there are.
        length: tokens of a window of text; None for 64, or what the model reads.
        prompts: a set, a file or a data set, as `prompt_texts.read_texts`; only for models with a tokenizer.
        text: a text file to cut windows from, in the place of prompts.
        column, limit: of a table of prompts.
        seed: of every draw.
    """

    batches: int = 4
    size: int | None = None
    length: int | None = None
    prompts: str | None = None
    text: str | None = None
    column: str | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no batch.

        Raises:
            ConfigError: naming it.
        """
        for name, value in (("batches", self.batches), ("size", self.size), ("length", self.length)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} {value} leaves nothing to read; give 1 or more")
        if self.text is not None and self.prompts is not None:
            raise ConfigError("both a text and prompts are given; choose one")


@dataclass(frozen=True)
class Subject:
    """A model with its batches.

    Attributes:
        loaded: the model.
        name: as tables show it.
        batches: to estimate gradients on; inputs and labels [sequence, position], labels are the next tokens.
        held_out: of the same kind, in none of the batches.
        data: where they are from.
        horizon: last supervised position of a wall run, None where all are.
    """

    loaded: Loaded
    name: str
    batches: tuple[Batch, ...]
    held_out: Batch
    data: str
    horizon: int | None = None

    @property
    def data_hash(self) -> str:
        """SHA-256 of all token ids and masks."""
        found = hashlib.sha256()
        for batch in (*self.batches, self.held_out):
            for part in (batch.x, batch.y, batch.mask):
                found.update(b"none" if part is None else part.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


def subject(loaded: Loaded, wanted: Wanted | None = None) -> Subject:
    """A model with its batches.

    Args:
        loaded: the model.
        wanted: what to read it on.

    Raises:
        ConfigError: if a run is given prompts or a text, a model without tokenizer is given either, or there is too little to read.
        UnknownNameError: for a file that is not there.
    """
    wanted = wanted or Wanted()
    label = Path(loaded.name).name if loaded.kind in ("folder", "gguf") else loaded.name
    device = next(loaded.model.parameters()).device
    if loaded.run is not None:
        if wanted.text is not None or wanted.prompts is not None:
            raise ConfigError(f"run {loaded.name} has no tokenizer and reads sequences of its own task; leave --text and --prompts out")
        of_text = loaded.run.manifest["task"].get("name") == texts.NAME
        made, data = _windows_of_run(loaded, wanted) if of_text else (_task_batches(loaded, wanted), "task")
        horizon = None if of_text else int(loaded.run.manifest["horizon"])
    else:
        made, data = _text_batches(loaded, wanted) if wanted.text is not None else _prompt_batches(loaded, wanted)
        horizon = None
    *batches, held_out = [_on(batch, device) for batch in made]
    return Subject(loaded, label, tuple(batches), held_out, data, horizon)


def _on(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.x.to(device), batch.y.to(device), None if batch.mask is None else batch.mask.to(device))


def _task_batches(loaded: Loaded, wanted: Wanted) -> list[Batch]:
    assert loaded.run is not None
    task, horizon = from_manifest(loaded.run.manifest["task"]), int(loaded.run.manifest["horizon"])
    made = []
    for number in range(wanted.batches + 1):
        size = HELD_OUT if number == wanted.batches else wanted.size or 32
        tokens = task.sample(size, generator(wanted.seed, "gradient batch", number)).tokens
        mask = torch.zeros(tokens.shape[1] - 1, dtype=torch.bool)
        mask[task.start : horizon] = True
        made.append(Batch(tokens[:, :-1], tokens[:, 1:], mask.expand(size, -1)))
    return made


def _windows_of_run(loaded: Loaded, wanted: Wanted) -> tuple[list[Batch], str]:
    """Windows of the text that a run was trained on, drawn from its training part; held out are those of its own evaluation."""
    assert loaded.run is not None
    manifest = loaded.run.manifest
    text, context = texts.from_manifest(manifest["task"]), int(manifest["shape"]["n_ctx"])
    if wanted.length is not None and wanted.length > context:
        raise ConfigError(f"windows of {wanted.length} tokens are longer than run {loaded.name} reads ({context}); give a smaller --length")
    recipe = manifest["config"]["recipe"]
    size, length = wanted.size or int(recipe["batch"]), wanted.length or context
    drawn = [text.batch(size, length, wanted.seed, "gradient batch", number) for number in range(wanted.batches)]
    held_out = text.held_out(int(recipe["val_windows"]), length)
    return [Batch(*pair) for pair in (*drawn, held_out)], Path(text.spec.source).name


def _prompt_batches(loaded: Loaded, wanted: Wanted) -> tuple[list[Batch], str]:
    """Prompts dealt out to the batches and to the held-out one, in order."""
    if loaded.tokenizer is None:
        raise ConfigError(f"model {loaded.name} came without a tokenizer; save one beside its weights (tokenizer.save_pretrained)")
    found = encode(loaded.name, loaded.tokenizer, limits(loaded), wanted.prompts or PROMPTS, wanted.column, wanted.limit)
    rows = [row for row in found.tokens if len(row) > 1]
    chunks = wanted.batches + 1
    size = wanted.size or len(rows) // chunks
    if not size or size * chunks > len(rows):
        raise ConfigError(
            f"{len(rows)} prompts of two or more tokens do not make {wanted.batches} batches of {size or 1} and a held-out one; "
            "give more prompts, a --text, or fewer --batches"
        )
    return [padded(rows[start * size : (start + 1) * size]) for start in range(chunks)], found.name


def padded(rows: Sequence[Tensor]) -> Batch:
    """Sequences of any lengths as one batch: zeros at the right, where their labels do not count."""
    longest = max(len(row) for row in rows)
    tokens = torch.stack([F.pad(row, (0, longest - len(row))) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(1, longest)[None] < lengths[:, None]
    return Batch(tokens[:, :-1], tokens[:, 1:], None if bool(mask.all()) else mask)


def _text_batches(loaded: Loaded, wanted: Wanted) -> tuple[list[Batch], str]:
    """Windows of a text that do not overlap, in a drawn order."""
    if loaded.tokenizer is None:
        raise ConfigError(f"model {loaded.name} came without a tokenizer; save one beside its weights (tokenizer.save_pretrained)")
    text = read_text(str(wanted.text))
    bounds = limits(loaded)
    length = wanted.length or min(WINDOW, bounds.context)
    if length > bounds.context:
        raise ConfigError(f"windows of {length} tokens are longer than {loaded.name} reads ({bounds.context}); give a smaller --length")
    ids = torch.tensor(loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
    Limits(len(ids), bounds.vocabulary).check(loaded.name, f"text file {wanted.text}", ids.tolist())
    return windows(ids, length, wanted.size or 4, wanted.batches + 1, wanted), Path(str(wanted.text)).name


def windows(ids: Tensor, length: int, size: int, chunks: int, wanted: Wanted) -> list[Batch]:
    """Windows of `length` inputs and their labels, none overlapping another."""
    there = (len(ids) - 1) // length
    if there < size * chunks:
        raise ConfigError(
            f"{wanted.text or 'the text'} has {len(ids)} tokens, {there} windows of {length}; {chunks - 1} batches of {size} and a "
            f"held-out one take {size * chunks}; give a longer text, or a smaller --length, --size or --batches"
        )
    order = torch.randperm(there, generator=generator(wanted.seed, "windows"))[: size * chunks] * length
    rows = torch.stack([ids[start : start + length + 1] for start in order.tolist()])
    return [Batch(part[:, :-1], part[:, 1:]) for part in torch.split(rows, size)]


def read_text(source: str) -> str:
    """A text file, UTF-8.

    Raises:
        UnknownNameError: if it is not there.
        ConfigError: if it is not UTF-8 text, or blank.
    """
    return store_texts.read_text(source, "text file", "an existing UTF-8 file")


@torch.no_grad()
def evaluation_losses(found: Subject, batch: Batch) -> Float[Tensor, "batch position"]:
    """Cross-entropy of every label in nats, by the way the model's own evaluation takes: no hook of ours is in it.

    An equilibrium run's is the model without hooks, its weights read again; another run's is `training.wall.evaluate.predict`; a bridge's
    is the transformers model it wraps; a HookedTransformer's is its own forward pass.
    """
    loaded: Any = found.loaded
    if loaded.kind == runs.EQUILIBRIUM:
        plain = PlainEquilibrium(EqConfig.of(loaded.run.manifest["shape"]))
        fill(plain, loaded.run.tensors())
        logits = plain.to(batch.x.device)(batch.x)
    elif loaded.run is not None:
        tokens = torch.cat([batch.x, batch.y[:, -1:]], dim=1).cpu()
        return -predict(loaded, tokens).gather(-1, tokens[:, 1:, None])[..., 0]
    elif hasattr(loaded.model, "original_model"):
        logits = loaded.model.original_model(batch.x).logits
    else:
        logits = loaded.model(batch.x, return_type="logits")
    losses: Tensor = -logits.double().log_softmax(-1).gather(-1, batch.y[..., None])[..., 0].cpu()
    return losses


def real(found: Subject, batch: Batch) -> Bool[Tensor, "batch position"]:
    """Which inputs are tokens and not padding: of a run all are, its mask says which positions cross-entropy trained."""
    if found.loaded.run is not None or batch.mask is None:
        return torch.ones_like(batch.y, dtype=torch.bool)
    return batch.mask
