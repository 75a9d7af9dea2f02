"""Any module with a stack of blocks, under transformer-lens's hook names: hooks reach the user's own modules, and leave them again."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

from torch import Tensor, nn

from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.models.limits import CONTEXTS, UNBOUNDED
from wallprobe.models.loaded import hook_name, quiet

# What people call the parts, by the name they have here.
PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attn": ("attn", "attention", "self_attn", "self_attention"),
        "mlp": ("mlp", "ffn", "feed_forward", "ff", "block_sparse_moe"),
        "ln_final": ("ln_final", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f", "norm"),
        "unembed": ("unembed", "lm_head", "head", "embed_out", "output"),
    }
)
WIDTHS = ("hidden_size", "n_embd", "d_model")
POSITIONS = ("pos", "wpe", "position")  # in the name of a table of positions


def find_blocks(net: nn.Module) -> tuple[nn.Module, nn.ModuleList | nn.Sequential]:
    """The longest stack of blocks of one class that lies in no other, and the module that holds it.

    Raises:
        ConfigError: if there is none, or two of one length.
    """
    found: list[tuple[str, nn.ModuleList | nn.Sequential]] = []
    for name, module in net.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and not inside and _stack(module):
            found.append((name, module))
    if not found:
        raise ConfigError(
            f"{type(net).__name__} has no stack of blocks: wallprobe looks for an nn.ModuleList or nn.Sequential whose members are of one "
            "class, have parts of their own and map [batch, index, d_model] to the same; give a module that has one"
        )
    longest = max(len(stack) for _, stack in found)
    names = [name for name, stack in found if len(stack) == longest]
    if len(names) > 1:
        raise ConfigError(
            f"{type(net).__name__} has {len(names)} stacks of {longest} blocks ({', '.join(names)}); wrap the one that is meant"
        )
    holder = net.get_submodule(names[0].rpartition(".")[0])
    return holder, next(stack for name, stack in found if name == names[0])


def _stack(module: nn.ModuleList | nn.Sequential) -> bool:
    members = list(module)
    return bool(members) and len({type(one) for one in members}) == 1 and any(True for _ in members[0].children())


def hooked_blocks(net: nn.Module) -> tuple[Any, int, int]:
    """A module's blocks behind hook points; the module's own code runs.

    `blocks.L.hook_resid_pre` is what a block is given, `hook_resid_post` what it gives, `hook_attn_out` and `hook_mlp_out` what its parts
    of a known name give (see `PARTS`). What a hook returns goes on through the module.

    Args:
        net: the module; called with token ids.

    Returns:
        What answers to hook names, how many blocks there are, and their width.

    Raises:
        ConfigError: if no stack of blocks is found, or no width.
    """
    holder, stack = find_blocks(net)
    width = _width(net)
    outer = {part: found for part in ("ln_final", "unembed") if (found := _part(holder, part) or _part(net, part)) is not None}
    model = _made(net, list(stack), outer)
    model.cfg = SimpleNamespace(n_layers=len(stack), d_model=width, n_ctx=_context(net), d_vocab=_vocabulary(net))
    return model, len(stack), width


def _part(module: nn.Module, part: str) -> nn.Module | None:
    return next((child for name in PARTS[part] for found, child in module.named_children() if found == name), None)


def _width(net: nn.Module) -> int:
    config = getattr(net, "config", None)
    told = [getattr(config, name, None) for name in WIDTHS]
    tables = [module.embedding_dim for module in net.modules() if isinstance(module, nn.Embedding)]
    norms = [int(module.normalized_shape[-1]) for module in net.modules() if isinstance(module, nn.LayerNorm)]
    known = [int(one) for one in (*told, *tables, *norms) if isinstance(one, int)]
    if not known:
        raise ConfigError(f"{type(net).__name__} tells no width: wallprobe looks for an nn.Embedding or an nn.LayerNorm in it")
    return known[0]


def _vocabulary(net: nn.Module) -> int:
    tables = [module.num_embeddings for name, module in net.named_modules() if isinstance(module, nn.Embedding) and not _of_positions(name)]
    return tables[0] if tables else UNBOUNDED


def _context(net: nn.Module) -> int:
    config = getattr(net, "config", None)
    told = [getattr(config, name, None) for name in CONTEXTS]
    tables = [module.num_embeddings for name, module in net.named_modules() if isinstance(module, nn.Embedding) and _of_positions(name)]
    return min((one for one in (*told, *tables) if isinstance(one, int) and one > 0), default=UNBOUNDED)


def _of_positions(name: str) -> bool:
    return any(word in name.rpartition(".")[2].lower() for word in POSITIONS)


def _made(net: nn.Module, stack: list[nn.Module], outer: Mapping[str, nn.Module]) -> Any:
    """The classes are made here, where transformer-lens is imported."""
    with quiet():
        from transformer_lens import HookedRootModule
        from transformer_lens.hook_points import HookPoint

    class Point(HookPoint):  # type: ignore[misc]
        """A hook point fed by a hook on a module of the user's, which is there only while this one has hooks."""

        def __init__(self, name: str, module: nn.Module, *, given: bool) -> None:
            super().__init__()
            self.name = name
            self._handle: Any = None
            self._owner, self._given = (module,), given  # within a tuple: no part of this module

        def add_hook(self, *arguments: Any, **options: Any) -> None:
            """As HookPoint's."""
            super().add_hook(*arguments, **options)
            self._follow()

        def remove_hooks(self, *arguments: Any, **options: Any) -> None:
            """As HookPoint's."""
            super().remove_hooks(*arguments, **options)
            self._follow()

        def _follow(self) -> None:
            wanted, (module,) = bool(self.fwd_hooks or self.bwd_hooks), self._owner
            if wanted and self._handle is None:
                enter, leave = module.register_forward_pre_hook, module.register_forward_hook
                self._handle = enter(self._enter, with_kwargs=True) if self._given else leave(self._leave)
            elif not wanted and self._handle is not None:
                self._handle.remove()
                self._handle = None

        def _enter(self, _: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
            key = None if positional else next((key for key, value in named.items() if isinstance(value, Tensor)), "")
            value = self._checked(positional[0] if positional else named.get(key or ""))
            new = self(value)
            if new is value:
                return None
            return ((new, *positional[1:]), named) if key is None else (positional, {**named, key: new})

        def _leave(self, _: nn.Module, __: Any, out: Any) -> Any:
            value = self._checked(out[0] if isinstance(out, (tuple, list)) and out else out)
            new = self(value)
            if new is value:
                return None
            return new if out is value else type(out)((new, *out[1:]))

        def _checked(self, value: Any) -> Tensor:
            if not isinstance(value, Tensor):
                raise InstrumentError(f"{self.name}: the module there handles {type(value).__name__}, wanted a tensor of hidden states")
            return value

    class Block(nn.Module):
        """The hook points of a block, and its parts by their names here."""

        def __init__(self, layer: int, block: nn.Module) -> None:
            super().__init__()
            self.hook_resid_pre = Point(f"blocks.{layer}.hook_resid_pre", block, given=True)
            self.hook_resid_post = Point(f"blocks.{layer}.hook_resid_post", block, given=False)
            for part in ("attn", "mlp"):
                found = _part(block, part)
                if found is not None:
                    self.add_module(part, found)
                    self.add_module(f"hook_{part}_out", Point(f"blocks.{layer}.hook_{part}_out", found, given=False))

    class HookedBlocks(HookedRootModule):  # type: ignore[misc]
        """The user's module between hooks. `setup` is not called: it would write a name into each of the user's modules."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.blocks = nn.ModuleList(Block(layer, block) for layer, block in enumerate(stack))
            for name, module in outer.items():
                self.add_module(name, module)
            points = [point for block in self.blocks for point in block.children() if isinstance(point, Point)]
            self.mod_dict = self.hook_dict = {point.name: point for point in points}
            self._masked = "attention_mask" in inspect.signature(net.forward).parameters

        def forward(
            self,
            tokens: Tensor,
            *,
            return_type: str | None = "logits",
            attention_mask: Tensor | None = None,
            stop_at_layer: int | None = None,
        ) -> Tensor | None:
            """Logits; the residual before a block, of a whole pass, for `stop_at_layer`."""
            options = {"attention_mask": attention_mask} if self._masked and attention_mask is not None else {}
            if stop_at_layer is not None:
                return self._residual(tokens, stop_at_layer, options)
            out = self.net(tokens, **options)
            if return_type is None:
                return None
            logits = out if isinstance(out, Tensor) else getattr(out, "logits", None)
            logits = out[0] if logits is None and isinstance(out, (tuple, list)) else logits
            if not isinstance(logits, Tensor):
                raise InstrumentError(f"{type(self.net).__name__} gives {type(out).__name__}, wanted logits, or an object that has them")
            return logits

        def _residual(self, tokens: Tensor, layer: int, options: dict[str, Any]) -> Tensor:
            seen: list[Tensor] = []
            point: Any = self.hook_dict[hook_name(layer, "resid_pre")]
            level = id(seen)
            point.add_hook(lambda value, hook=None: seen.append(value), level=level)
            try:
                self.net(tokens, **options)
            finally:
                point.remove_hooks("fwd", level=level)
            return seen[0]

    return HookedBlocks()
