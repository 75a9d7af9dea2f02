"""The branches' Jacobian J_nc at one state, frozen: J d and J^T d without a graph, from activations that are kept.

J_nc is that of Attn(LN1 z) + MLP(LN2 z) alone; the whole force has J = J_nc - (1 + c). The nudged phase needs both products at every
step and never another state, so no transcendental function is evaluated twice. Under a graph both are differentiable by the weights,
once, which is all that the contraction penalty needs.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wallprobe.models.equilibrium import GELU_CUBE, GELU_SLOPE, LN_EPS, RMS_EPS, Fused


@dataclass(frozen=True)
class Frozen:
    """Activations of the block at a state.

    Attributes:
        fused: the block's weights.
        normed: the normalised state, `[rows, d_model]`; `spread` what it was divided by, `[rows, 1]`.
        q, k, v: `[sequence * head, index, d_head]`; `q_size`, `k_size` what queries and keys were divided by (None without qk_norm).
        pattern: `[sequence * head, index, index]`.
        slope: the derivative of GELU at the hidden units, `[rows, d_mlp]`.
        shape: batch, index, d_model.
    """

    fused: Fused
    normed: Tensor
    spread: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    q_size: Tensor | None
    k_size: Tensor | None
    pattern: Tensor
    slope: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def at(cls, fused: Fused, z: Tensor) -> "Frozen":
        """The linearisation at z, `[batch, index, d_model]`."""
        batch, index, width = z.shape
        rows = z.detach().reshape(-1, width)
        centred = rows - rows.mean(1, keepdim=True)
        spread = (centred.square().mean(1, keepdim=True) + LN_EPS).sqrt()
        normed = centred / spread
        made = torch.addmm(fused.b_in, normed, fused.w_in)
        q, k, v = (_heads(part, batch, index, fused.heads) for part in torch.split(made[:, : 3 * width], width, 1))
        q_size = k_size = None
        if fused.qk_norm:
            q_size, k_size = ((part.square().mean(-1, keepdim=True) + RMS_EPS).sqrt() for part in (q, k))
            q, k = q / q_size, k / k_size
        scores = torch.bmm(q, k.mT) / math.sqrt(q.shape[-1])
        future = torch.ones(index, index, dtype=torch.bool, device=z.device).triu(1)
        pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
        slope = _gelu_slope(made[:, 3 * width :])
        return cls(fused, normed, spread, q, k, v, q_size, k_size, pattern, slope, (batch, index, width))

    def repeated(self, times: int) -> "Frozen":
        """The same for `times` states a sequence, stacked along the batch."""

        def tiled(value: Tensor) -> Tensor:
            return value.repeat(times, *[1] * (value.ndim - 1))

        sizes = [None if size is None else tiled(size) for size in (self.q_size, self.k_size)]
        normed, spread, q, k, v, pattern, slope = map(tiled, (self.normed, self.spread, self.q, self.k, self.v, self.pattern, self.slope))
        batch, index, width = self.shape
        return Frozen(self.fused, normed, spread, q, k, v, sizes[0], sizes[1], pattern, slope, (times * batch, index, width))

    def push(self, d: Tensor) -> Tensor:
        """J_nc d, in d's shape `[batch, index, d_model]`."""
        batch, index, width = self.shape
        fused = self.fused
        made = self._norm(d.reshape(-1, width)) @ fused.w_in
        dq, dk, dv = (_heads(part, batch, index, fused.heads) for part in torch.split(made[:, : 3 * width], width, 1))
        dq, dk = _rms(dq, self.q, self.q_size), _rms(dk, self.k, self.k_size)
        scores = torch.baddbmm(torch.bmm(self.q, dk.mT), dq, self.k.mT)
        mixed = torch.baddbmm(torch.bmm(self._softmax(scores), self.v), self.pattern, dv)
        out = _flat(mixed, batch, index) @ fused.w_o
        return torch.addmm(out, made[:, 3 * width :] * self.slope, fused.w_out).view(batch, index, width)

    def pull(self, a: Tensor) -> Tensor:
        """J_nc^T a, in a's shape."""
        batch, index, width = self.shape
        fused, rows = self.fused, a.reshape(-1, width)
        mixed = _heads(rows @ fused.w_o.T, batch, index, fused.heads)
        scores = self._softmax(torch.bmm(mixed, self.v.mT))
        dq = _rms(torch.bmm(scores, self.k), self.q, self.q_size)
        dk = _rms(torch.bmm(scores.mT, self.q), self.k, self.k_size)
        dv = torch.bmm(self.pattern.mT, mixed)
        back = torch.cat([*(_flat(part, batch, index) for part in (dq, dk, dv)), (rows @ fused.w_out.T) * self.slope], 1)
        return self._norm(back @ fused.w_in.T).view(batch, index, width)

    def _norm(self, d: Tensor) -> Tensor:
        """The normalisation's Jacobian, which is symmetric."""
        along = (self.normed * d).mean(1, keepdim=True)
        return torch.addcmul(d - d.mean(1, keepdim=True), self.normed, along, value=-1) / self.spread

    def _softmax(self, d: Tensor) -> Tensor:
        """The softmax's Jacobian, symmetric too, with the scores' scale."""
        weighted = self.pattern * d
        return torch.addcmul(weighted, self.pattern, weighted.sum(-1, keepdim=True), value=-1) / math.sqrt(self.q.shape[-1])


def _rms(d: Tensor, normed: Tensor, size: Tensor | None) -> Tensor:
    """The Jacobian of division by the root mean square, symmetric."""
    if size is None:
        return d
    return torch.addcmul(d, normed, (normed * d).mean(-1, keepdim=True), value=-1) / size


def _heads(rows: Tensor, batch: int, index: int, heads: int) -> Tensor:
    """[rows, heads * d_head] -> [batch * heads, index, d_head]."""
    return rows.reshape(batch, index, heads, -1).transpose(1, 2).reshape(batch * heads, index, -1)


def _flat(parts: Tensor, batch: int, index: int) -> Tensor:
    """The way back."""
    return parts.view(batch, -1, index, parts.shape[-1]).transpose(1, 2).reshape(batch * index, -1)


def _gelu_slope(u: Tensor) -> Tensor:
    """d/du of u sigmoid(s), s = u (slope + cube u^2)."""
    square = u * u
    gate = (u * (GELU_SLOPE + GELU_CUBE * square)).sigmoid()
    return gate + u * gate * (1 - gate) * (GELU_SLOPE + 3 * GELU_CUBE * square)


def branches_complex(fused: Fused, z: Tensor) -> Tensor:
    """The branches continued to complex states: squares not conjugated, the softmax as a ratio of exponentials, GELU by tanh."""
    batch, index, width = z.shape
    rows = z.reshape(-1, width)
    centred = rows - rows.mean(1, keepdim=True)
    normed = centred / (centred * centred).mean(1, keepdim=True).add(LN_EPS).sqrt()
    made = torch.addmm(fused.b_in.to(z.dtype), normed, fused.w_in.to(z.dtype))
    q, k, v = (_heads(part, batch, index, fused.heads) for part in torch.split(made[:, : 3 * width], width, 1))
    if fused.qk_norm:
        q, k = (part / (part * part).mean(-1, keepdim=True).add(RMS_EPS).sqrt() for part in (q, k))
    scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(q.shape[-1])
    future = torch.ones(index, index, dtype=torch.bool, device=z.device).triu(1)
    top = scores.real.masked_fill(future, -torch.inf).amax(-1, keepdim=True)
    mass = (scores - top).exp().masked_fill(future, 0)
    mixed = _flat(torch.bmm(mass / mass.sum(-1, keepdim=True), v), batch, index)
    u = made[:, 3 * width :]
    hidden = 0.5 * u * (1 + (0.5 * u * (GELU_SLOPE + GELU_CUBE * u * u)).tanh())
    out = mixed @ fused.w_o.to(z.dtype) + hidden @ fused.w_out.to(z.dtype) + fused.b_out
    return out.view(batch, index, width)


def softmax_complex(logits: Tensor) -> Tensor:
    """The softmax as a ratio of exponentials, after the real maximum is taken off."""
    mass = (logits - logits.real.amax(-1, keepdim=True)).exp()
    return mass / mass.sum(-1, keepdim=True)
