"""The wall's task as a subject of audits: HookedTransformers trained on the prefix that condition c0 supervises, by any estimator.

Attention is causal, so the supervised positions' loss and its gradient are those of the whole sequence. A credit has a vector for each
supervised position; the others, which no loss reaches, get zero.
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wallprobe import models
from wallprobe.errors import ConfigError
from wallprobe.rng import generator
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.tasks.task import Task
from wallprobe.training.estimators.nets import Net, Sizes
from wallprobe.training.wall import lean

ARCH, DATA = "wall", "recurrence"
HORIZON = 5  # K of condition c0
TRAIN, TEST = 51_200, 2_000  # sequences
WIDTH, DEPTH = 64, 3  # unless `Sizes` says otherwise
METHODS = ("bp", "fa", "dfa", "frozen")


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


@dataclass(frozen=True)
class Sequences:
    """The task's sequences, with the names that audits know of pictures: inputs are tokens up to index K - 1, labels those after them.

    Attributes:
        train_x, test_x: tokens.
        train_y, test_y: the next ones, at positions 1..K.
        test_tokens: the test part's whole sequences, for what is not supervised.
        task: what they were drawn from.
        data_hash: SHA-256 of the tokens.
    """

    train_x: Int[Tensor, "train index"]
    train_y: Int[Tensor, "train index"]
    test_x: Int[Tensor, "test index"]
    test_y: Int[Tensor, "test index"]
    test_tokens: Int[Tensor, "test length"]
    task: Task
    data_hash: str
    name: str = DATA
    source: str = "drawn"

    @property
    def classes(self) -> int:
        """Tokens."""
        return self.task.vocabulary

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one sequence: one row of K tokens."""
        return 1, 1, self.train_x.shape[1]

    def noisy_labels(self, share: float, *labels: str | int) -> Int[Tensor, "train index"]:
        """The next tokens as they are: half of the task's sequences are noise already.

        Raises:
            ConfigError: if more is asked for.
        """
        if share:
            raise ConfigError("the wall's task has noise of its own; leave --label-noise out")
        return self.train_y


@functools.lru_cache(maxsize=1)
def load_sequences() -> Sequences:
    """The same for every seed: 51,200 sequences to train on, 2,000 others to look at."""
    task = RecurrenceTask()
    train, test = (task.sample(count, generator("audit wall", part)).tokens for part, count in (("train", TRAIN), ("test", TEST)))
    digest = hashlib.sha256(train.numpy().tobytes() + test.numpy().tobytes()).hexdigest()
    begin, end = task.start + 1, task.start + HORIZON + 1
    return Sequences(train[:, : end - 1], train[:, begin:end], test[:, : end - 1], test[:, begin:end], test, task, digest)


def build_wall(seed: int, sizes: Sizes) -> Net:
    """A HookedTransformer for the task, drawn as the wall's own conditions draw theirs.

    Raises:
        ConfigError: if the heads do not divide the width.
    """
    width, depth, task = sizes.width or WIDTH, sizes.depth or DEPTH, RecurrenceTask()
    if width % sizes.heads:
        raise ConfigError(f"width {width} does not divide into {sizes.heads} heads; give a multiple")
    shape = lean.Shape(depth, width, sizes.heads, task.context, task.vocabulary)
    given = {"n_layers": depth, "d_model": width, "n_heads": sizes.heads, "n_ctx": task.context, "vocabulary": task.vocabulary}
    model = models.build(given, lean.to_hooked(lean.init_params(shape, seed), shape))
    return wall_net(model, task.start, task.vocabulary)


def distance(net: Net, data: Sequences) -> Float[Tensor, " position"]:
    """Mean |H(P) - H(Q)| in bits at positions 1..T-1: the model's entropy against the exact predictive's."""
    task = data.task
    with torch.no_grad():
        log_probs = torch.cat([net(part[:, :-1]) for part in torch.split(data.test_tokens, 500)]).double().log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
    exact = task.posterior(data.test_tokens).entropy[:, task.start :]
    found: Tensor = (entropy - exact).abs().mean(0)
    return found
