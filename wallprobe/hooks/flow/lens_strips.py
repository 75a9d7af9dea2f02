"""The logit lens while streaming: every block's output through the final norm and the unembedding, a strip of the vocabulary at a time.

No logits of all tokens are ever held: of each strip stays what entropy, loss and first choice are made of; of the states, their inner
products, from which ranks come whichever tokens turn out to be sinks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.hooks.attach.prompt_sets import PromptSet, batches
from wallprobe.models.streamed import Streamed
from wallprobe.models.strips import Crew

ROWS = 512  # of the vocabulary in a strip
MOST = 1024  # states whose inner products are kept


@dataclass
class Said:
    """What the lens says of each state, fp64.

    Attributes:
        entropy: of its prediction, nats.
        loss: on the state's target, nats; NaN where it has none.
        first: whether the target is the first choice; NaN where there is none.
    """

    entropy: Float[Tensor, " state"]
    loss: Float[Tensor, " state"]
    first: Float[Tensor, " state"]


def read_out(
    states: Float[Tensor, "state d_model"], weight: Tensor, bias: Tensor | None, targets: Int[Tensor, " state"], crew: Crew
) -> Said:
    """Entropy, loss and first choice of softmax(states weight^T + bias).

    Args:
        states: after the final norm, fp32, on the crew's device.
        weight: `[vocabulary, d_model]`, any floating type.
        bias: `[vocabulary]`, or None.
        targets: next tokens; below 0 where there is none.
        crew: what multiplies.
    """
    starts = range(0, len(weight), ROWS)
    shape = len(starts), len(states)
    highest, mass, moment = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    best, own = torch.zeros(shape, dtype=torch.int64), torch.full((len(states),), math.nan, dtype=torch.float64)

    def strip(place: int) -> None:
        low = place * ROWS
        part = weight[low : low + ROWS]
        logits = F.linear(states, crew.cast(part), None if bias is None else bias[low : low + ROWS].to(states.device))
        top, where = logits.max(dim=-1)
        rest = logits - top[:, None]
        shares = rest.exp()
        highest[place], best[place] = top.cpu().double(), where.cpu() + low
        mass[place] = shares.sum(dim=-1).cpu().double()
        moment[place] = (shares * rest).sum(dim=-1).cpu().double()
        here = torch.nonzero((targets >= low) & (targets < low + len(part)))[:, 0]
        own[here] = logits.cpu()[here, targets[here] - low].double()

    crew.each(strip, range(len(starts)))
    top, where = highest.max(dim=0)
    apart = highest - top
    scale = apart.exp()
    total = (mass * scale).sum(dim=0)
    entropy = total.log() - ((moment + apart * mass) * scale).sum(dim=0) / total
    chosen = best.gather(0, where[None])[0]
    first = torch.where(targets >= 0, (chosen == targets).double(), math.nan)
    return Said(entropy, top + total.log() - own, first)


class Lens:
    """A visitor of a walk: what the lens says of every token after every block.

    Attributes:
        held: bytes that it will hold at most.
        entropy, loss, first: `[layer, state]`, as `Said`; states in the order of `places`.
        products: `[layer, state, state]` inner products of the first `MOST` states, fp64.
        places: (prompt, index) of every state.
    """

    def __init__(self, model: Streamed, prompts: PromptSet) -> None:
        """Look at nothing yet.

        Raises:
            CheckpointError: as `Streamed.head`.
        """
        self._head = model.head()
        self.places = [
            (prompt, index) for members in batches(prompts) for prompt in members for index in range(len(prompts.tokens[prompt]))
        ]
        following = [prompts.tokens[prompt][index + 1 : index + 2] for prompt, index in self.places]
        self._targets = torch.tensor([int(one) if len(one) else -1 for one in following])
        states, ranked = len(self.places), min(MOST, len(self.places))
        self.entropy, self.loss, self.first = (torch.full((model.n_layers, states), math.nan, dtype=torch.float64) for _ in range(3))
        self.products = torch.zeros(model.n_layers, ranked, ranked, dtype=torch.float64)
        self.held = held_bytes(model, prompts)

    def visit(self, layer: int, after: Sequence[Float[Tensor, "_ _ d_model"]], crew: Crew) -> None:
        """Once a block, every batch's output in the order of `measure.batches`."""
        states = torch.cat([batch.flatten(0, 1) for batch in after])
        said = read_out(self._head.norm.to(crew.device)(states), self._head.weight, self._head.bias, self._targets, crew)
        self.entropy[layer], self.loss[layer], self.first[layer] = said.entropy, said.loss, said.first
        ranked = states[:MOST].cpu().double()
        self.products[layer] = ranked @ ranked.T

    def kept(self) -> dict[str, Tensor]:
        """What it has gathered, to go on from after an interruption."""
        return {"entropy": self.entropy, "loss": self.loss, "first": self.first, "products": self.products}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Take that up again."""
        for name, tensor in kept.items():
            getattr(self, name).copy_(tensor)


def held_bytes(model: Streamed, prompts: PromptSet) -> int:
    """What a `Lens` holds at most: figures and inner products of all layers, one layer's states, logits of one strip a thread."""
    states = sum(len(row) for row in prompts.tokens)
    ranked = min(MOST, states)
    kept = 8 * model.n_layers * (3 * states + ranked * ranked)
    at_once = 8 * (states + 2 * ranked) * model.d_model + 16 * ROWS * states * torch.get_num_threads()
    unpacked = 4 * model.vocabulary * model.d_model if model.kind == "gguf" else 0  # the unembedding, which elsewhere stays in its file
    return kept + at_once + 40 * states * (model.vocabulary // ROWS + 1) + unpacked


def ranks_of_products(products: Float[Tensor, "state state"]) -> tuple[float, float]:
    """Effective rank and participation ratio of centred states, from their inner products. NaN below two states."""
    if len(products) < 2:
        return math.nan, math.nan
    rows = products.mean(dim=0)
    share = torch.linalg.eigvalsh(products - rows - rows[:, None] + rows.mean()).clamp_min(0.0)
    share = share / share.sum()
    entropy = -(share * share.clamp_min(1e-300).log()).sum()
    return float(entropy.exp()), float(1 / share.square().sum())
