"""Gradients of any model, whoever estimated them: the loss they are of, their parameters by group, inner products in fp64.

Nothing here clamps: a norm that is nothing or not finite is told in words (`cosine`, `ratio`), never hidden in an epsilon.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wallprobe.models import quiet
from wallprobe.training.estimators.nets import Net
from wallprobe.training.estimators.protocol import Batch

SMALLEST = 1e-30  # a norm below it is called nothing
# group -> where in a transformer-lens name it is found; the first that fits decides
GROUPS: Mapping[str, re.Pattern[str]] = {
    "embed": re.compile(r"^(embed|pos_embed)\."),
    "unembed": re.compile(r"^unembed\."),
    "ln": re.compile(r"(^|\.)ln(1|2|_final|1_post|2_post)?\."),
    "qk": re.compile(r"\.attn\.([Wb]_[QK]$|_[Wb]_[QK]$|[qk](_norm)?\.)"),
    "v": re.compile(r"\.attn\.(_?[Wb]_V$|v\.)"),
    "o": re.compile(r"\.attn\.([Wb]_O$|o\.)"),
    "mlp_in": re.compile(r"\.mlp\.([Wb]_(in|gate)$|(in|gate)\.)"),
    "mlp_out": re.compile(r"\.mlp\.([Wb]_out$|out\.)"),
}
OTHER = "other"
# What transformers calls the same places in a decoder that the bridge holds, for parameters no bridged module has.
ALIASES = (
    (re.compile(r"^(.*\.)?(embed_tokens|wte|embed_in|tok_embeddings)\."), "embed."),
    (re.compile(r"^(.*\.)?(wpe|embed_positions)\."), "pos_embed."),
    (re.compile(r"^(.*\.)?(lm_head|embed_out)\."), "unembed."),
    (re.compile(r"^(model|transformer|gpt_neox)\.(norm|ln_f|final_layer_norm)\."), "ln_final."),
)
STACK = re.compile(r"^(?:model|transformer|gpt_neox)\.(?:layers|h|decoder\.layers)\.(\d+)\.")
BRIDGED = re.compile(r"^blocks\.\d+\.(attn\.(q|k|v|o|q_norm|k_norm)|mlp\.(in|gate|out)|ln[12])\.")


def lens_names(model: nn.Module) -> dict[str, str]:
    """Parameter name -> its transformer-lens name: the same for HookedTransformers; for bridges, `blocks.3.attn.q.weight`."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(_bridged(name))
    return {
        name: next((other for other in found[id(parameter)] if BRIDGED.match(other)), found[id(parameter)][0])
        for name, parameter in model.named_parameters()
    }


def _bridged(name: str) -> str:
    """One of a bridge's several names for a parameter, in transformer-lens words."""
    name = STACK.sub(r"blocks.\1.", name.replace("._original_component", ""))
    for pattern, word in ALIASES:
        name = pattern.sub(word, name) if not name.startswith("blocks.") else name
    return name


def group_of(lens_name: str) -> str:
    """The group of a parameter by its transformer-lens name; "other" where none fits."""
    return next((group for group, pattern in GROUPS.items() if pattern.search(lens_name)), OTHER)


def named_groups(model: nn.Module) -> dict[str, list[str]]:
    """The model's own parameter names by group, in the order of `GROUPS`; groups without any are left out."""
    made: dict[str, list[str]] = {group: [] for group in (*GROUPS, OTHER)}
    for name, lens_name in lens_names(model).items():
        made[group_of(lens_name)].append(name)
    return {group: names for group, names in made.items() if names}


def in_block(lens_name: str) -> bool:
    """Whether a parameter belongs to a block, by its transformer-lens name: what headline figures are of."""
    return lens_name.startswith("blocks.")


def token_losses(model: Any, batch: Batch, dtype: torch.dtype | None = None) -> Float[Tensor, "batch *position"]:
    """Cross-entropy of every label in nats, whatever its mask says; of a network of the audit, one a sample.

    Args:
        model: gives logits.
        batch: inputs and labels.
        dtype: that the logits' softmax is computed in; the model's own by default.
    """
    if isinstance(model, Net):
        losses: Tensor = model.losses(model(batch.x), batch.y)
        return losses
    logits: Tensor = model(batch.x)
    logits = logits if dtype is None else logits.to(dtype)
    return F.cross_entropy(logits.flatten(0, -2), batch.y.flatten(), reduction="none").view(batch.y.shape)


def masked_mean(values: Float[Tensor, "*shape"], batch: Batch) -> Float[Tensor, ""]:
    """The mean over the labels that count."""
    if batch.mask is None:
        return values.mean()
    counted = batch.mask.to(values)
    return (values * counted).sum() / counted.sum()


def mean_loss(model: Any, batch: Batch) -> Float[Tensor, ""]:
    """Mean cross-entropy of the labels that count, in nats."""
    return masked_mean(token_losses(model, batch), batch)


def named_grads(
    model: nn.Module, total: Tensor, only: set[str] | None = None, pulls: Sequence[tuple[Tensor, Tensor]] = ()
) -> dict[str, Tensor]:
    """Derivatives of a total by the named parameters; those it does not reach are left out. Each pull (value, credit) adds <value, credit>
    to the total, the credit held fixed."""
    chosen = {name: value for name, value in model.named_parameters() if (only is None or name in only) and value.requires_grad}
    reached = [(value, credit) for value, credit in pulls if value.requires_grad]
    ends, given = [total, *(value for value, _ in reached)], [None, *(credit for _, credit in reached)]
    found = torch.autograd.grad(ends, list(chosen.values()), given, allow_unused=True)
    return {name: grad for name, grad in zip(chosen, found, strict=True) if grad is not None}


def penalised(total: Tensor, states: list[Tensor], penalty: float) -> Tensor:
    """The total plus penalty times the sum of the states' mean squares (the audit's control of scale)."""
    if not penalty:
        return total
    return total + penalty * sum((state.square().mean() for state in states), torch.zeros((), dtype=total.dtype))


def inner(left: Tensor, right: Tensor) -> float:
    """<left, right> accumulated in fp64, whatever the dtypes."""
    return float(torch.dot(left.detach().flatten().double(), right.detach().flatten().double()))


def inner_by(left: Mapping[str, Tensor], right: Mapping[str, Tensor], place: Mapping[str, int], size: int) -> Float[Tensor, " place"]:
    """Inner products of two gradients, those of one place summed.

    Args:
        left, right: parameter name -> gradient; what only one of them has counts as absent.
        place: parameter name -> place.
        size: how many places.
    """
    total = torch.zeros(size, dtype=torch.float64)
    for name in left.keys() & right.keys():
        total[place[name]] += inner(left[name], right[name])
    return total


def cosine(product: float, left: float, right: float) -> tuple[float, str]:
    """A cosine from an inner product and two squared norms, and why it is NaN where it is (else an empty text)."""
    if not all(map(math.isfinite, (product, left, right))):
        return math.nan, "not finite"
    if math.sqrt(max(left, 0.0)) < SMALLEST or math.sqrt(max(right, 0.0)) < SMALLEST:
        return math.nan, "zero gradient"
    return product / (math.sqrt(left) * math.sqrt(right)), ""


def ratio(left: float, right: float) -> tuple[float, str]:
    """A ratio of norms from their squares, and why it is NaN where it is."""
    if not (math.isfinite(left) and math.isfinite(right)):
        return math.nan, "not finite"
    if math.sqrt(max(right, 0.0)) < SMALLEST:
        return math.nan, "zero gradient"
    return math.sqrt(max(left, 0.0)) / math.sqrt(right), ""


@contextlib.contextmanager
def in_dtype(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """The model in another precision; back in its own afterwards, bit for bit (fp32 -> fp64 -> fp32 is exact)."""
    own = next(model.parameters()).dtype
    try:
        with quiet():
            model.to(dtype)
        yield
    finally:
        with quiet():
            model.to(own)


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The parameters as they are, by name; whatever happens to them inside, they are these bytes again afterwards."""
    kept = {name: value.detach().clone() for name, value in model.named_parameters()}
    try:
        yield kept
    finally:
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(kept[name])
