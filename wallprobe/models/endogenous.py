"""Mechanisms of a run that act from outside the hooks: a learned temperature before the head, forget gates in attention."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def add_endogenous(model: Any, shape: Mapping[str, int], state: Mapping[str, Tensor]) -> None:
    """Give the model the mechanisms whose parameters are in the state. They act from outside the hooks that instruments use."""
    if any(name.startswith("temperature.") for name in state):
        model.temperature = _Temperature(shape["d_model"]).to(model.cfg.device)
        model.unembed.register_forward_hook(lambda _, given, logits: logits / model.temperature(given[0])[..., None])
    if any(".attn.gate." in name for name in state):
        for block in model.blocks:
            block.attn.gate = _Gate(shape["d_model"], shape["n_heads"]).to(model.cfg.device)
            block.attn.gate.attach(block.attn, model.pos_embed)


class _Temperature(nn.Module):
    """What the logits are divided by: softplus of a small MLP on the normalised final residual, at least 0.01."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        hidden = max(1, d_model // 4)
        self.W_in, self.b_in = nn.Parameter(torch.zeros(d_model, hidden)), nn.Parameter(torch.zeros(hidden))
        self.W_out, self.b_out = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(()))

    def forward(self, normed: Tensor) -> Tensor:
        """The temperature at each index."""
        hidden = nn.functional.gelu(normed @ self.W_in + self.b_in)
        return nn.functional.softplus(hidden @ self.W_out + self.b_out).clamp(min=0.01)


class _Gate(nn.Module):
    """Scales, for each head and index, what the position embedding adds to that head's query and key."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.zeros(d_model, n_heads)), nn.Parameter(torch.zeros(n_heads))

    def attach(self, attention: Any, positions: Any) -> None:
        """Let it act on an attention module: on what `hook_q` and `hook_k` are given, before any hook an instrument puts there."""
        now: dict[str, Tensor] = {}

        def read(_: nn.Module, __: tuple[Any, ...], named: dict[str, Any]) -> None:
            given, past = named["query_input"], named.get("past_kv_cache_entry")
            start = 0 if past is None else past.past_keys.shape[1]
            now["opened"] = (given @ self.W + self.b).sigmoid()[..., None]
            now["placed"] = positions.W_pos[start : start + given.shape[1]]

        attention.register_forward_pre_hook(read, with_kwargs=True)
        for hook, name in ((attention.hook_q, "W_Q"), (attention.hook_k, "W_K")):
            hook.register_forward_hook(
                lambda _, __, value, name=name: value + now["opened"] * torch.einsum("id,hdk->ihk", now["placed"], getattr(attention, name))
            )
