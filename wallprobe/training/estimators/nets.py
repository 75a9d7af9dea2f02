"""The networks of the audit: an embedding, blocks, a readout; between them the states h_0..h_L (the audit study).

Plain torch modules with torch's own initialisation; `models.hooked` gives them transformer-lens hook names for the shared cache.
A state is a vector (ResMLP, StudentNet), a row of tokens (ViT-Mini) or a map (BN-CNN). A credit has one vector for each sample,
spread over tokens or pixels so that its norm stays what it was.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from wallprobe.errors import ConfigError, look_up
from wallprobe.rng import derive_seed

BROADCASTS = ("all", "cls")


class Net(nn.Module):
    """Blocks between an embedding and a readout.

    Attributes:
        embed: input -> h_0.
        blocks: h_l -> h_{l+1}, the residual connection included where there is one.
        readout: h_L -> logits.
        widths: features of h_0..h_L, what a credit has for each sample.
        classes: logits.
        broadcast: how a credit reaches a state of several tokens: all of them, or the first ("cls").
    """

    def __init__(
        self, embed: nn.Module, blocks: list[nn.Module], readout: nn.Module, widths: tuple[int, ...], classes: int, broadcast: str = "all"
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) + 1:
            raise ConfigError(f"{len(widths)} widths for {len(blocks)} blocks; give one for each state h_0..h_L, {len(blocks) + 1}")
        if broadcast not in BROADCASTS:
            raise ConfigError(f"broadcast '{broadcast}' is none of {', '.join(BROADCASTS)}")
        self.embed, self.blocks, self.readout = embed, nn.ModuleList(blocks), readout
        self.widths, self.classes, self.broadcast = widths, classes, broadcast

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return len(self.blocks)

    def parts(self, place: int) -> tuple[nn.Module, ...]:
        """The pieces of a block that a local rule trains apart: the block itself, or its sub-layers."""
        block = self.blocks[place]
        return tuple(block) if isinstance(block, nn.Sequential) else (block,)

    def states(self, x: Tensor) -> list[Tensor]:
        """h_0..h_L."""
        found = [self.embed(x)]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found

    def after(self, place: int, state: Tensor) -> Tensor:
        """Logits from h_place. Of a last block that knows how, only what the readout reads is computed."""
        for number, block in enumerate(list(self.blocks)[place:], place + 1):
            state = block.first(state) if number == self.depth and isinstance(block, TokenBlock) else block(state)
        logits: Tensor = self.readout(state)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.after(0, self.embed(x))

    def spread(self, credit: Float[Tensor, "batch *positions width"], state: Tensor) -> Tensor:
        """A credit in the shape of a state, its norm kept."""
        if state.ndim == 2 or credit.ndim == state.ndim:
            return credit
        if state.ndim == 4:
            return (credit[:, :, None, None] / math.sqrt(state.shape[2] * state.shape[3])).expand_as(state)
        if self.broadcast == "all":
            return (credit[:, None, :] / math.sqrt(state.shape[1])).expand_as(state)
        return F.pad(credit[:, None, :], (0, 0, 0, state.shape[1] - 1))

    def gather(self, state: Tensor) -> Tensor:
        """The adjoint of `spread`: for every credit c and state g, <spread(c), g> = <c, gather(g)>."""
        if state.ndim == 2:
            return state
        if state.ndim == 4:
            return state.sum((2, 3)) / math.sqrt(state.shape[2] * state.shape[3])
        return state.sum(1) / math.sqrt(state.shape[1]) if self.broadcast == "all" else state[:, 0]

    def losses(self, logits: Float[Tensor, "batch *positions classes"], y: Int[Tensor, "batch *positions"]) -> Float[Tensor, " batch"]:
        """Cross-entropy of each sample in nats; of several positions, their mean."""
        if y.ndim == 1:
            return F.cross_entropy(logits, y, reduction="none")
        return F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view_as(y).flatten(1).mean(1)

    def error(self, logits: Float[Tensor, "batch *positions classes"], y: Int[Tensor, "batch *positions"]) -> Tensor:
        """e_T, the derivative of each sample's loss by its logits: softmax minus one-hot."""
        difference = logits.softmax(-1) - F.one_hot(y, self.classes).to(logits.dtype)
        return difference if y.ndim == 1 else difference / math.prod(y.shape[1:])

    def outer(self) -> set[str]:
        """Names of the parameters outside the blocks: what the frozen baseline trains."""
        return {name for name, _ in self.named_parameters() if not name.startswith("blocks.")}


class MLPBlock(nn.Module):
    """h + w2 gelu(w1 LN(h))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.ln, self.w1, self.w2 = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        """The next state."""
        out: Tensor = h + self.w2(F.gelu(self.w1(self.ln(h))))
        return out


class AttentionBlock(nn.Module):
    """h + softmax attention over LN(h), every token to every other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """The next state."""
        batch, tokens, width = h.shape
        query, key, value = self.qkv(self.ln(h)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, tokens, width)
        added: Tensor = h + self.out(mixed)
        return added

    def first(self, h: Tensor) -> Tensor:
        """The next state's first token, as a row of one: its query meets every key, the other queries are left out."""
        batch, tokens, width = h.shape
        normed = self.ln(h)
        weights, biases = self.qkv.weight, self.qkv.bias
        query = F.linear(normed[:, :1], weights[:width], biases[:width]).view(batch, 1, self.heads, -1).transpose(1, 2)
        both = F.linear(normed, weights[width:], biases[width:])
        key, value = both.view(batch, tokens, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, 1, width)
        added: Tensor = h[:, :1] + self.out(mixed)
        return added


class TokenBlock(nn.Sequential):
    """Attention, then an MLP: two pieces that a local rule trains apart."""

    def first(self, h: Tensor) -> Tensor:
        """The next state's first token, as a row of one: all that a readout of the class token reads of the last block."""
        attention: Any = self[0]
        token: Tensor = self[1](attention.first(h))
        return token


class Patches(nn.Module):
    """A picture, padded to whole patches (28 to 32), as embedded patches behind a learned class token."""

    def __init__(self, shape: tuple[int, int, int], patch: int, width: int) -> None:
        super().__init__()
        channels, height, _ = shape
        side = 32 if height == 28 else math.ceil(height / patch) * patch
        self.patch, self.padding = patch, (side - height) // 2
        self.proj = nn.Linear(channels * patch * patch, width)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        nn.init.normal_(self.cls, std=0.02)
        nn.init.normal_(self.pos, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """h_0."""
        padded = F.pad(x, (self.padding,) * 4)
        tokens = self.proj(F.unfold(padded, self.patch, stride=self.patch).transpose(1, 2))
        h: Tensor = torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1) + self.pos
        return h


class Readout(nn.Module):
    """Linear head on the state's vector (of tokens, the first; of a map, its mean), behind a layer norm unless told otherwise."""

    def __init__(self, width: int, classes: int, *, norm: bool) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, classes)

    def forward(self, h: Tensor) -> Tensor:
        """Logits."""
        vector = h if h.ndim == 2 else h[:, 0] if h.ndim == 3 else h.mean((2, 3))
        logits: Tensor = self.head(self.ln(vector))
        return logits


class BatchNorm(nn.BatchNorm2d):
    """Batch norm of maps whose channels lie last in memory, in training by the two-pass formulas on a matrix [pixel, channel].

    torch's own adds a channel's hundred thousand pixels up one after the other in that layout: normalised maps were measured to be off
    by 1e-3, gradients by 1e-2.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalised by the batch while training, by the running figures at rest."""
        if not self._by_pixels(x):
            return super().forward(x)
        function: Any = _Normalise
        return self._run(x, *function.apply(x, self.weight, self.bias, self.eps))

    def pooled(self, x: Tensor) -> Tensor:
        """Normalised, then max-pooled by 2. Where no gain is negative, the largest stays the largest: pooling first gives the same
        values and leaves a quarter to normalise."""
        if bool((self.weight < 0).any()) or (self.training and not self._by_pixels(x)):
            return F.max_pool2d(self(x), 2)
        if not self.training:
            return super().forward(F.max_pool2d(x, 2))
        function: Any = _NormalisePooled
        return self._run(x, *function.apply(x, self.weight, self.bias, self.eps))

    def _by_pixels(self, x: Tensor) -> bool:
        return self.training and x.is_contiguous(memory_format=torch.channels_last)

    def _run(self, x: Tensor, out: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """The normalised map, the batch's figures having gone into the running ones."""
        pixels, running = x.numel() // x.shape[1], self.momentum or 0.1
        unbiased = variance * (pixels / max(1, pixels - 1))
        for kept, now in ((self.running_mean, mean), (self.running_var, unbiased)):
            if kept is not None:
                kept.lerp_(now, running)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return out


class _Normalise(torch.autograd.Function):
    """Batch norm of a map [batch, channel, height, width] with channels last in memory; also its mean and (biased) variance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        centred, mean, variance = _centred(x)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(centred, scale, weight)
        ctx.mark_non_differentiable(mean, variance)
        return _maps(torch.addcmul(bias, centred, weight * scale), x.shape), mean, variance

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        centred, scale, weight = ctx.saved_tensors
        rows = _pixels(given[0])
        total, along = rows.sum(0), (rows * centred).sum(0)
        if not ctx.needs_input_grad[0]:
            return None, along * scale, total, None
        gain = weight * scale
        back = torch.addcmul(-gain * total / len(rows), rows, gain)
        back.addcmul_(centred, -gain * scale * scale * along / len(rows))
        return _maps(back, given[0].shape), along * scale, total, None


class _NormalisePooled(torch.autograd.Function):
    """The same, max-pooled by 2 behind; gains are 0 or more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        centred, mean, variance = _centred(x)
        scale = (variance + eps).rsqrt()
        largest, where = F.max_pool2d(_maps(centred, x.shape), 2, return_indices=True)
        ctx.save_for_backward(centred, largest, where, scale, weight)
        ctx.whole = x.shape
        ctx.mark_non_differentiable(mean, variance)
        return _maps(torch.addcmul(bias, _pixels(largest), weight * scale), largest.shape), mean, variance

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        centred, largest, where, scale, weight = ctx.saved_tensors
        rows = _pixels(given[0])
        total, along = rows.sum(0), (rows * _pixels(largest)).sum(0)
        if not ctx.needs_input_grad[0]:
            return None, along * scale, total, None
        gain, shape = weight * scale, ctx.whole
        back = torch.ops.aten.max_pool2d_with_indices_backward(
            _maps(rows * gain, given[0].shape), _maps(centred, shape), [2, 2], [2, 2], [0, 0], [1, 1], False, where
        )
        flat = _pixels(back)
        flat.addcmul_(centred, -gain * scale * scale * along / len(centred)).sub_(gain * total / len(centred))
        return _maps(flat, shape), along * scale, total, None


def _centred(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a map: [pixel, channel] about each channel's mean, that mean, and the (biased) variance."""
    rows = _pixels(x)
    mean = rows.mean(0)
    centred = rows - mean
    return centred, mean, (centred * centred).mean(0)


def _pixels(x: Tensor) -> Tensor:
    """A map as [pixel, channel]; a view where channels lie last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _maps(rows: Tensor, shape: torch.Size) -> Tensor:
    """The map again, channels last in memory."""
    return rows.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    """3 x 3 convolution, batch norm, ReLU, max-pooling by 2 where there are two pixels to pool.

    Channels lie last in memory, which pooling takes a tenth of the time for; the ReLU comes behind the pooling, which changes no value.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, width, 3, padding=1), BatchNorm(width)

    def forward(self, h: Tensor) -> Tensor:
        """The next state."""
        out = self.conv(channels_last(h))
        return F.relu(self.norm.pooled(out) if min(out.shape[2:]) > 1 else self.norm(out))


def channels_last(x: Tensor) -> Tensor:
    """The map with channels last in memory, also where there is one channel and torch would call any layout that."""
    return x if x.stride(1) == 1 and x.shape[1] > 1 else x.clone(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Sizes:
    """What is free about an architecture; None takes the architecture's own.

    Attributes:
        width: features of a state (of BN-CNN, of the last).
        depth: blocks.
        mlp_ratio: hidden over width of an MLP.
        patch: side of a patch, pixels.
        heads: attention heads.
        terminal_ln: layer norm before the head.
        broadcast: see `Net`.
    """

    width: int | None = None
    depth: int | None = None
    mlp_ratio: int | None = None
    patch: int | None = None
    heads: int = 4
    terminal_ln: bool = True
    broadcast: str = "all"


def _resmlp(shape: tuple[int, int, int], classes: int, sizes: Sizes) -> Net:
    """Pre-LN residual MLP: 4 blocks of 256, the study's; hidden as wide as the state (the study does not say; 4 times for paper scale)."""
    width, depth = sizes.width or 256, sizes.depth or 4
    embed = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width))
    blocks: list[nn.Module] = [MLPBlock(width, width * (sizes.mlp_ratio or 1)) for _ in range(depth)]
    return Net(embed, blocks, Readout(width, classes, norm=sizes.terminal_ln), (width,) * (depth + 1), classes)


def _vit(shape: tuple[int, int, int], classes: int, sizes: Sizes) -> Net:
    """Small pre-norm vision transformer: patches of 4 (2 where the picture is tiny), 4 blocks of 128, class token, final LN."""
    width, depth = sizes.width or 128, sizes.depth or 4
    patch = sizes.patch or (4 if shape[1] >= 16 else 2)
    blocks: list[nn.Module] = [
        TokenBlock(AttentionBlock(width, sizes.heads), MLPBlock(width, width * (sizes.mlp_ratio or 4))) for _ in range(depth)
    ]
    readout = Readout(width, classes, norm=sizes.terminal_ln)
    return Net(Patches(shape, patch, width), blocks, readout, (width,) * (depth + 1), classes, sizes.broadcast)


def _student(shape: tuple[int, int, int], classes: int, sizes: Sizes) -> Net:
    """Plain MLP of the teacher-student lineage, no layer norm anywhere: 4 hidden layers of 256 behind the first."""
    width, depth = sizes.width or 256, sizes.depth or 4
    embed = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width), nn.ReLU())
    blocks: list[nn.Module] = [Rectified(width) for _ in range(depth)]
    return Net(embed, blocks, Readout(width, classes, norm=False), (width,) * (depth + 1), classes)


class Rectified(nn.Module):
    """relu(w h), no residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """The next state."""
        return F.relu(self.w(h))


def _bncnn(shape: tuple[int, int, int], classes: int, sizes: Sizes) -> Net:
    """Convolutions with batch norm, widths doubling up to 128; h_0 is the picture itself."""
    depth = sizes.depth or 3
    last = sizes.width or 128
    widths = (shape[0], *(max(1, last >> (depth - 1 - place)) for place in range(depth)))
    blocks: list[nn.Module] = [ConvBlock(before, after) for before, after in itertools.pairwise(widths)]
    return Net(nn.Identity(), blocks, Readout(widths[-1], classes, norm=False), widths, classes)


NETS: Mapping[str, Callable[[tuple[int, int, int], int, Sizes], Net]] = MappingProxyType(
    {"resmlp": _resmlp, "vit": _vit, "student": _student, "bncnn": _bncnn}
)
NAMES: Mapping[str, str] = MappingProxyType({"resmlp": "ResMLP", "vit": "ViT-Mini", "student": "StudentNet", "bncnn": "BN-CNN"})


def build_net(arch: str, shape: tuple[int, int, int], classes: int, seed: int, sizes: Sizes | None = None) -> Net:
    """An architecture with torch's default initialisation, decided by (seed, arch) alone.

    Args:
        arch: a key of `NETS`.
        shape: channels, height, width of a picture.
        classes: labels.
        seed: of the initialisation; the same for every training method, so that they start level.
        sizes: what differs from the architecture's own.

    Raises:
        UnknownNameError: for an unknown architecture.
    """
    make = look_up("architecture", arch, NETS)
    with torch.random.fork_rng():  # torch's initialisers know no other generator
        torch.manual_seed(derive_seed(seed, "init", arch))
        return make(shape, classes, sizes or Sizes())


def matrices(module: nn.Module) -> Iterator[Tensor]:
    """The weight matrices of a block (of a convolution, output channels by the rest), in order; biases by head are none."""
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2 and not name.rpartition(".")[2].startswith("b_"):
            yield parameter.flatten(1)
