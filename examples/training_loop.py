"""A training loop of your own, watched by wallprobe: gains every few steps, and probes on what the network did meanwhile.

The network knows nothing of wallprobe, and the loop calls it as it would anyway. Run it: python examples/training_loop.py
"""

import contextlib
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wallprobe as wp

PRIME, LENGTH = 7, 8


class Attention(nn.Module):
    """Causal attention of one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, index, width] to the same."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(query, key, value, is_causal=True))


class Block(nn.Module):
    """A pre-norm block; its parts are called attn and mlp, so that wallprobe finds what they add."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1, self.ln2, self.attn = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, index, width] to the same."""
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Net(nn.Module):
    """A small decoder."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(PRIME, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, PRIME)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [batch, index] to logits."""
        x = self.embed(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


def batch(source: torch.Generator, size: int = 32) -> Tensor:
    """Sequences x, x + step, x + 2 step, ... modulo 7."""
    first, step = torch.randint(PRIME, (2, size, 1), generator=source)
    return (first + step * torch.arange(LENGTH)) % PRIME


def following(ids: Tensor) -> Tensor:
    """What the probes are to read at each index: the token that comes next, which takes two tokens to know."""
    return (ids + ids[:, 1:2] - ids[:, :1]) % PRIME


def train(steps: int = 200, every: int = 20) -> tuple[list[float], wp.Result, wp.Result]:
    """Train, and look every few steps; probes look at every step of the last quarter, when the network changes little.

    Returns:
        The loss of each step, gains over the passes that were looked at, and what probes found in them.
    """
    torch.manual_seed(0)
    net, source = Net(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    model = wp.wrap(net, name="own")
    meter = wp.GainMeter(model)
    bank = wp.ProbeBank(model, "blocks.*.hook_resid_post", {"next": following}, index=-1, capacity=512)
    losses = []
    for number in range(steps):
        ids = batch(source)
        with contextlib.ExitStack() as watching:
            if number % every == 0:
                watching.enter_context(meter)
            if number >= steps * 3 // 4:
                watching.enter_context(bank)
            logits = net(ids)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, meter.result(), bank.fit()


if __name__ == "__main__":
    losses, gains, probes = train()
    sys.stdout.write(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}\n{gains.summary['finding']}\n{probes.summary['finding']}\n")
    sys.stdout.write(f"{probes.to_dataframe()[['hook', 'accuracy', 'control_accuracy', 'majority']].to_string(index=False)}\n")
