"""Models of our own shape as transformer-lens has them: a run's HookedTransformer, an equilibrium transformer, a network of the audit."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wallprobe.errors import CheckpointError
from wallprobe.models.endogenous import add_endogenous
from wallprobe.models.equilibrium import EqConfig, Equilibrium, fill
from wallprobe.models.loaded import Loaded, quiet


def build(shape: Mapping[str, Any], state: Mapping[str, Tensor], device: str = "cpu") -> nn.Module:
    """A HookedTransformer of a run's shape: causal, pre-LN, exact GELU, learned positions.

    Args:
        shape: `n_layers`, `d_model`, `n_heads`, `n_ctx`, `vocabulary`; `act_fn` where it is not exact GELU.
        state: parameters by HookedTransformer name. Those under `temperature.` and `blocks.L.attn.gate.` (endogenous conditions) become
            part of the model, so that it computes what was trained. Those under `head.` (a training's scalar head, which only reads)
            are left out.
        device: torch device.

    Raises:
        CheckpointError: if the parameters do not fit the shape, or if there are others than these.
    """
    _check_sizes(shape, state)
    with quiet():
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        config = HookedTransformerConfig(
            n_layers=shape["n_layers"],
            d_model=shape["d_model"],
            n_heads=shape["n_heads"],
            d_head=shape["d_model"] // shape["n_heads"],
            d_mlp=4 * shape["d_model"],
            n_ctx=shape["n_ctx"],
            d_vocab=shape["vocabulary"],
            act_fn=shape.get("act_fn", "gelu"),
            normalization_type="LN",
            init_weights=False,
            device=device,
        )
        model: nn.Module = HookedTransformer(config)
    wanted = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    add_endogenous(model, shape, wanted)
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    wrong = sorted(name for name in expected.keys() | wanted.keys() if expected.get(name) != getattr(wanted.get(name), "shape", None))
    if wrong:
        raise _misfit(shape, wrong)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(wanted[name])
    return model.eval()


def _check_sizes(shape: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Whether tables and depth are of that shape, before a model is made of it: of what a manifest claims there may be no memory."""
    width = shape["d_model"]
    tables = {"embed.W_E": (shape["vocabulary"], width), "pos_embed.W_pos": (shape["n_ctx"], width)}
    wrong = [name for name, sizes in tables.items() if name not in state or tuple(state[name].shape) != sizes]
    layers, placed = shape["n_layers"], {name: name.split(".")[1] for name in state if name.startswith("blocks.")}
    known = {str(layer) for layer in range(min(layers, len(state)))}
    wrong += sorted(name for name, layer in placed.items() if layer not in known)
    if wrong or len(set(placed.values())) != layers:
        raise _misfit(shape, wrong or ["blocks"])


def _misfit(shape: Mapping[str, Any], wrong: Sequence[str]) -> CheckpointError:
    return CheckpointError(f"the weights do not fit a model of shape {dict(shape)}: {', '.join(wrong[:4])} differ; retrain the run")


def hooked(net: Any, name: str = "net") -> Loaded:
    """A network of the audit (`training.estimators.nets.Net`) with transformer-lens hook names, for the shared cache.

    `hook_embed` is h_0, `blocks.L.hook_resid_pre` and `blocks.L.hook_resid_post` are the states before and after a block, each as
    `[batch, index, width]`: a vector has one index, a map one for each pixel. What a hook returns goes on through the network.

    Args:
        net: the network; its weights are shared, not copied.
        name: what to call it.
    """
    with quiet():
        from transformer_lens import HookedRootModule
        from transformer_lens.hook_points import HookPoint

    class Point(nn.Module):
        """The hooks of a block."""

        def __init__(self) -> None:
            super().__init__()
            self.hook_resid_pre, self.hook_resid_post = HookPoint(), HookPoint()

    class Hooked(HookedRootModule):  # type: ignore[misc]
        """The network between hooks."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.hook_embed = net, HookPoint()
            self.blocks = nn.ModuleList(Point() for _ in net.blocks)
            HookedRootModule.setup(self)

        def forward(self, x: Tensor, stop_at_layer: int | None = None) -> Tensor:
            """Logits, or the state before a block."""
            h = _through(self.hook_embed, self.net.embed(x))
            for block, point in list(zip(self.net.blocks, self.blocks, strict=True))[:stop_at_layer]:
                h = _through(point.hook_resid_post, block(_through(point.hook_resid_pre, h)))
            out: Tensor = self.net.readout(h) if stop_at_layer is None else h
            return out

    return Loaded(name, "net", Hooked().eval(), len(net.blocks), net.widths[-1], None)


def _through(hook: Any, state: Tensor) -> Tensor:
    """A state through a hook as [batch, index, width], and back in its own shape."""
    rows = state[:, None] if state.ndim == 2 else state.flatten(2).transpose(1, 2) if state.ndim == 4 else state
    out: Tensor = hook(rows)
    return out[:, 0] if state.ndim == 2 else out.transpose(1, 2).reshape(state.shape) if state.ndim == 4 else out


def build_equilibrium(cfg: EqConfig, state: Mapping[str, Tensor] | None = None, seed: int = 0) -> Equilibrium:
    """An equilibrium transformer with transformer-lens hooks, caches and all.

    Args:
        cfg: shape and dynamics.
        state: parameters by name; None leaves those drawn from the seed.
        seed: of that draw.

    Raises:
        CheckpointError: if the parameters are another model's.
    """
    with quiet():
        from transformer_lens import HookedRootModule
        from transformer_lens.hook_points import HookPoint

    class EquilibriumTransformer(Equilibrium, HookedRootModule):  # type: ignore[misc]
        """The model between hooks."""

        def __init__(self) -> None:
            super().__init__()
            self.lay(cfg, seed, HookPoint)
            HookedRootModule.setup(self)

    if state is not None:
        _check_sizes({"n_layers": 1, "vocabulary": cfg.d_vocab, "d_model": cfg.d_model, "n_ctx": cfg.n_ctx}, state)
        if tuple(getattr(state.get("blocks.0.mlp.W_in"), "shape", ())) != (cfg.d_model, cfg.d_mlp):
            raise _misfit(cfg.shape(), ["blocks.0.mlp.W_in"])
    model: Equilibrium = EquilibriumTransformer()
    if state is not None:
        fill(model, state)
    return model.eval()
