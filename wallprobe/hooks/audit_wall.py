"""A run of the wall's task as a subject of an audit: its HookedTransformer as it stands, on the prefix that cross-entropy supervises.

Attention is causal, so the supervised positions' loss and its gradient are those of the whole sequence. A credit has a vector for each
supervised position. Runs trained by backpropagation are asked what DFA's credits would be worth there, or held to their own gradient.
"""

from typing import Any

from torch import Tensor, nn

from wallprobe import models
from wallprobe.hooks.audit import Subject
from wallprobe.hooks.geometry import untrained
from wallprobe.rng import generator
from wallprobe.runs import Run
from wallprobe.tasks.registry import from_manifest
from wallprobe.training.nets import Net

SAMPLES = 1024


class Embedding(nn.Module):
    """Tokens with their positions: h_0."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tokens, self.positions = model.embed, model.pos_embed

    def forward(self, x: Tensor) -> Tensor:
        """Embedded tokens."""
        h: Tensor = self.tokens(x) + self.positions(x)
        return h


class Supervised(nn.Module):
    """Final norm and unembedding at the supervised positions; those within a task's header are left out."""

    def __init__(self, model: Any, start: int) -> None:
        super().__init__()
        self.ln_final, self.unembed, self.start = model.ln_final, model.unembed, start

    def forward(self, h: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.unembed(self.ln_final(h))[:, self.start :]
        return logits


class Positions(Net):
    """A net whose credit has a vector for each supervised position and none for a header's."""

    start = 0

    def spread(self, credit: Tensor, state: Tensor) -> Tensor:
        """Zero where nothing is supervised."""
        return nn.functional.pad(credit, (0, 0, state.shape[1] - credit.shape[1], 0))

    def gather(self, state: Tensor) -> Tensor:
        """The supervised positions."""
        return state[:, self.start :]


def wall_net(model: Any, start: int, vocabulary: int) -> Net:
    """A HookedTransformer as a net of the audit; its weights are shared."""
    width = model.cfg.d_model
    net = Positions(Embedding(model), list(model.blocks), Supervised(model, start), (width,) * (len(model.blocks) + 1), vocabulary)
    net.start = start
    return net


def wall_subject(run: Run, method: str = "dfa", seed: int = 0) -> Subject:
    """A run against its own initialisation, on fresh sequences of its task.

    Args:
        run: any run but those with endogenous mechanisms, whose initialisation has other parameters.
        method: whose credits: "dfa" or "bp".
        seed: of the sequences, feedback and random directions.
    """
    task, manifest = from_manifest(run.manifest["task"]), run.manifest
    shape, horizon = manifest["shape"], int(manifest["horizon"])
    now, start = (wall_net(loaded.model, task.start, shape["vocabulary"]) for loaded in (models.load_run(run), untrained(run)))
    tokens = task.sample(SAMPLES, generator(seed, "audit wall")).tokens
    return Subject(now, tokens[:, :horizon], tokens[:, task.start + 1 : horizon + 1], method, start, f"{run.name}", seed)
