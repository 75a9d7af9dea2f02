"""Forward passes from the middle: many patched residuals at once, only the layers above each and the indices from it on.

A patch at one index leaves everything before that index, and everything below its layer, as it was. The keys and values of the
earlier indices are computed once, on the clean sequences; patched sequences enter the walk up the layers as their layer comes, and in
the last layer only the index that is read is finished.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.hooks.attach.stacks import Stack
from wallprobe.models.products import Products

TILE = 12 << 20  # bytes inside the MLP of states that pass a block together: enough for its matrix products, few enough for the caches

Kept = tuple[Tensor, Tensor, Tensor]  # queries, keys and values of a layer, clean
Reduce = Callable[[Float[Tensor, "cell pair vocab"]], Float[Tensor, "cell pair figure"]]


@dataclass(frozen=True)
class Clean:
    """What the sequences are without a patch, up to and with the index that is read.

    Attributes:
        residual: before each block, and after the last.
        attn: what attention adds.
        mlp: what the MLP adds.
        z: the heads' outputs side by side.
        queries: of each layer.
        keys: of each layer.
        values: of each layer.
    """

    residual: list[Float[Tensor, "pair index d_model"]]
    attn: list[Float[Tensor, "pair index d_model"]]
    mlp: list[Float[Tensor, "pair index d_model"]]
    z: list[Float[Tensor, "pair index z"]]
    queries: list[Float[Tensor, "pair head index d_head"]]
    keys: list[Float[Tensor, "pair group index d_head"]]
    values: list[Float[Tensor, "pair group index d_head"]]

    @property
    def read_index(self) -> int:
        """The last index."""
        return self.residual[0].shape[1] - 1

    def layer(self, layer: int, pairs: slice) -> Kept:
        """A layer's queries, keys and values, of some pairs."""
        return self.queries[layer][pairs], self.keys[layer][pairs], self.values[layer][pairs]


@dataclass(frozen=True)
class Entry:
    """A patched residual on its way: it replaces the clean one before block `layer` at the walk's index.

    Attributes:
        layer: block it enters, n_layers for after the last.
        residual: what stands at the index.
    """

    layer: int
    residual: Float[Tensor, "pair d_model"]


def predicted_bytes(stack: Stack, pairs: int, length: int, index: int) -> int:
    """Peak bytes of one entry on its walk: the states, then the larger of attention and the MLP on them (fp32).

    Args:
        stack: the model.
        pairs: sequences patched.
        length: indices up to and with the one read.
        index: where the entry stands.
    """
    rows = pairs * (length - index)
    attention = 8 * stack.d_model + 3 * stack.n_heads * length
    return 4 * rows * (stack.d_model + max(attention, 2 * stack.d_model + 3 * stack.d_mlp))


def observe(stack: Stack, tokens: Int[Tensor, "pair index"]) -> Clean:
    """One clean pass that keeps what patches and walks need."""
    residual, attn, mlp, z, queries, keys, values = [stack.embed(tokens)], [], [], [], [], [], []
    length = tokens.shape[1]
    for layer in range(stack.n_layers):
        query, key, value = stack.heads(layer, residual[-1], 0, length)
        groups = key.shape[1]
        mixed = attend(_grouped(query, groups), _grouped(key, groups), _grouped(value, groups), None, stack.scale)
        z.append(mixed)
        attn.append(stack.write(layer, mixed))
        middle = residual[-1] + attn[-1]
        mlp.append(stack.mlp(layer, residual[-1] if stack.parallel else middle))
        residual.append(middle + mlp[-1])
        queries.append(query.contiguous())
        keys.append(key.contiguous())
        values.append(value.contiguous())
    return Clean(residual, attn, mlp, z, queries, keys, values)


def attend(
    query: Float[Tensor, "pair group cell sharing query d_head"],
    key: Float[Tensor, "pair group cell 1 index d_head"],
    value: Float[Tensor, "pair group cell 1 index d_head"],
    past: tuple[Float[Tensor, "pair group past d_head"], Float[Tensor, "pair group past d_head"]] | None,
    scale: float,
) -> Float[Tensor, "rows query z"]:
    """Causal attention of the last `query` indices; rows are cells x pairs, and what is past is shared by the cells of a pair.

    The past's scores are one matrix product a pair and group over all its cells, not a copy a cell.
    """
    pairs, groups, cells, repeat, asked, width = query.shape
    given = key.shape[-2]
    query, key, value = query.reshape(-1, repeat * asked, width), key.reshape(-1, given, width), value.reshape(-1, given, width)
    scores = torch.bmm(query, key.mT)
    if asked > 1:
        hidden = torch.ones(asked, given, dtype=torch.bool, device=query.device).triu(1 + given - asked)
        scores = scores.view(-1, repeat, asked, given).masked_fill_(hidden, -torch.inf).view(-1, repeat * asked, given)
    if past is not None:
        past_keys, past_values = (part.flatten(0, 1) for part in past)
        before = torch.bmm(query.view(pairs * groups, -1, width), past_keys.mT)
        scores = torch.cat([before.view(-1, repeat * asked, past_keys.shape[1]), scores], dim=-1)
    weights = scores.mul_(scale).softmax(dim=-1)
    mixed = torch.bmm(weights[..., -given:], value)
    if past is not None:
        earlier = weights[..., :-given].reshape(pairs * groups, -1, past_keys.shape[1])
        mixed += torch.bmm(earlier, past_values).view(mixed.shape)
    mixed = mixed.view(pairs, groups, cells, repeat, asked, width).permute(2, 0, 4, 1, 3, 5)
    return mixed.reshape(cells * pairs, asked, -1)


def _grouped(part: Float[Tensor, "pair head index d_head"], groups: int) -> Float[Tensor, "pair group 1 sharing index d_head"]:
    """One cell a pair, the heads that share keys and values together."""
    pairs, heads, count, width = part.shape
    return part.view(pairs, groups, 1, heads // groups, count, width)


def walk(stack: Stack, clean: Clean, index: int, entries: Sequence[Entry], reduce: Reduce) -> Float[Tensor, "entry pair figure"]:
    """Carry every entry to the logits at the index that is read, together.

    Entries alike go once: a patch of a block's resid_post is one of the next block's resid_pre.

    Args:
        stack: the model.
        clean: of the sequences that are patched.
        index: where the entries stand.
        entries: in ascending order of layer.
        reduce: what is kept of the logits.
    """
    kept, place = _distinct(entries)
    over = _walk(stack, clean, index, kept)
    return reduce(stack.read(over.flatten(0, 1)).view(*over.shape[:2], -1))[place]


def _distinct(entries: Sequence[Entry]) -> tuple[list[Entry], list[int]]:
    """The entries without repetitions, and for each entry which of them it is."""
    kept: list[Entry] = []
    place = []
    alike: dict[tuple[int, float], list[int]] = {}
    for entry in entries:
        candidates = alike.setdefault((entry.layer, float(entry.residual.sum())), [])
        same = [at for at in candidates if torch.equal(kept[at].residual, entry.residual)]
        if not same:
            same = [len(kept)]
            candidates.append(len(kept))
            kept.append(entry)
        place.append(same[0])
    return kept, place


def _walk(stack: Stack, clean: Clean, index: int, entries: Sequence[Entry]) -> Float[Tensor, "entry pair d_model"]:
    """The residual stream at the index that is read, after the last block; a block takes some pairs after the other."""
    read, length = clean.read_index, clean.read_index - index + 1
    pairs, width = entries[0].residual.shape
    states, products = entries[0].residual.new_empty(len(entries), pairs, length, width), Products()
    active = 0
    for layer in range(entries[0].layer, stack.n_layers):
        inside = active
        while active < len(entries) and entries[active].layer == layer:
            states[active] = clean.residual[layer][:, index:]
            states[active, :, 0] = entries[active].residual
            active += 1
        products.block(active * pairs * length)
        together = max(1, TILE // (4 * stack.d_mlp * active * length))
        for start in range(0, pairs, together):
            some = slice(start, start + together)
            _block(stack, clean.layer(layer, some), layer, index, states[:active, some], inside, products)
    # After the last block an index is read or it is nothing to the answer.
    over = [entry.residual if index == read else clean.residual[-1][:, read] for entry in entries[active:]]
    return torch.stack([*states[:active, :, -1].unbind(0), *over])


def _block(
    stack: Stack, clean: Kept, layer: int, index: int, states: Float[Tensor, "entry pair index d_model"], inside: int, products: Products
) -> None:
    """Carry states through one block, in place; in the last one only the index that is read is carried."""
    query, key, value = _heads(stack, clean, layer, index, states, inside, products)
    past = (clean[1][:, :, :index], clean[2][:, :, :index]) if index else None
    rows = states[:, :, -query.shape[4] :]
    added = stack.write(layer, attend(query, key, value, past, stack.scale), products).view(rows.shape)
    if stack.parallel:
        added += stack.mlp(layer, rows, products)
        rows += added
    else:
        rows += added
        rows += stack.mlp(layer, rows, products)


def _heads(
    stack: Stack, clean: Kept, layer: int, index: int, states: Float[Tensor, "entry pair index d_model"], inside: int, products: Products
) -> Kept:
    """Queries, keys and values of the entries' rows, laid out for `attend`."""
    length = states.shape[2]
    asked = 1 if layer == stack.n_layers - 1 else length
    going = stack.heads(layer, states[:inside], index, asked, products) if inside else (None, None, None)
    entering = stack.heads(layer, states[inside:, :, :1], index, 1, products) if inside < len(states) else (None, None, None)
    groups = clean[1].shape[1]
    query, key, value = (
        _beside(old, new, _grouped(before[:, :, -count:], groups), count == length)
        for old, new, before, count in zip(going, entering, clean, (asked, length, length), strict=True)
    )
    return query, key, value


def _beside(
    going: Float[Tensor, "going head index d_head"] | None,
    entering: Float[Tensor, "entering head 1 d_head"] | None,
    clean: Float[Tensor, "pair group 1 sharing index d_head"],
    patched: bool,
) -> Float[Tensor, "pair group cell sharing index d_head"]:
    """Entries that are on their way, then those that enter: of these only the first index, if `patched`, has other than the clean ones."""
    pairs, groups, _, repeat, count, width = clean.shape
    some, more = (0 if part is None else len(part) // pairs for part in (going, entering))
    made = clean.new_empty(pairs, groups, some + more, repeat, count, width)
    if going is not None:
        made[:, :, :some] = going.view(some, pairs, groups, repeat, count, width).permute(1, 2, 0, 3, 4, 5)
    if entering is not None:
        new, first = made[:, :, some:], int(patched)
        new[..., first:, :] = clean[..., first:, :]
        if patched:
            new[..., :1, :] = entering.view(more, pairs, groups, repeat, 1, width).permute(1, 2, 0, 3, 4, 5)
    return made
