"""The equilibrium transformer: one pre-LN block run to its fixed point (the equilibrium study), as plain torch.

F(z) = x - (1 + c) z + Attn(LN1 z) + MLP(LN2 z), z <- z + eps F(z) from z = x; logits = z* W_U. `models.build_equilibrium` gives it
transformer-lens hook points; parameters have transformer-lens names either way.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from wallprobe.errors import CheckpointError, ConfigError
from wallprobe.rng import generator

LN_EPS, RMS_EPS = 1e-5, 1e-6
UNEMBED_STD = 0.02
GELU_SLOPE = 2 * math.sqrt(2 / math.pi)
GELU_CUBE = 0.044715 * GELU_SLOPE


@dataclass(frozen=True)
class EqConfig:
    """Shape and dynamics.

    Attributes:
        d_vocab, d_model, n_heads, n_ctx: as usual.
        mlp_ratio: hidden width of the MLP over d_model.
        c: leak beyond the state's own.
        eps: Euler step. `eps * T1` and `eps * T2` are times; they, not the counts, are what to keep when eps changes.
        T1: steps of the free phase.
        T2: steps of the nudged phase at which its state is read.
        qk_norm: divide every query and key by its root mean square.
        resinit: what the branches' output weights are scaled by at first.
        emb_std: of the embeddings at first.
    """

    d_vocab: int
    d_model: int = 64
    n_heads: int = 4
    n_ctx: int = 32
    mlp_ratio: int = 4
    c: float = 1.0
    eps: float = 0.25
    T1: int = 60
    T2: int = 16
    qk_norm: bool = True
    resinit: float = 0.1
    emb_std: float = 0.3

    def __post_init__(self) -> None:
        for name in ("d_vocab", "d_model", "n_heads", "n_ctx", "mlp_ratio", "T1", "T2"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} makes no equilibrium model; give 1 or more")
        if self.d_model % self.n_heads:
            raise ConfigError(f"{self.n_heads} heads do not divide a width of {self.d_model}")
        if not 0 < self.eps * (1 + self.c) < 2:
            raise ConfigError(f"eps {self.eps:g} with leak c {self.c:g}: the relaxation needs 0 < eps (1 + c) < 2")

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.d_model // self.n_heads

    @property
    def d_mlp(self) -> int:
        """Hidden width of the MLP."""
        return self.mlp_ratio * self.d_model

    @property
    def n_layers(self) -> int:
        """One block, for what counts layers."""
        return 1

    def shape(self) -> dict[str, Any]:
        """Plain JSON for a run's manifest, under the names that other runs use too."""
        return asdict(self) | {"n_layers": 1, "vocabulary": self.d_vocab}

    @classmethod
    def of(cls, shape: Mapping[str, Any]) -> "EqConfig":
        """The configuration in a manifest."""
        return cls(**{key: value for key, value in shape.items() if key not in ("n_layers", "vocabulary")})


@dataclass(frozen=True)
class RelaxResult:
    """Where a relaxation ended.

    Attributes:
        z: the state, `[batch, index, d_model]`.
        res: |last step| / |z| over the whole batch: eps |F| / |z|.
        per_sequence: the same of each sequence, `[batch]`.
        steps: Euler steps done.
    """

    z: Tensor
    res: float
    per_sequence: Tensor
    steps: int


@dataclass(frozen=True)
class Fused:
    """A block's weights laid out for the fewest products: both norms share one normalisation, so their gains move into the weights.

    Attributes:
        w_in: `[d_model, 3 d_model + d_mlp]`, queries, keys, values and the MLP's hidden units in one product.
        b_in: its bias.
        w_o: `[d_model, d_model]`, of concatenated heads.
        w_out: `[d_mlp, d_model]`.
        b_out: `[d_model]`.
        heads: how many.
        qk_norm: as in the configuration.
    """

    w_in: Tensor
    b_in: Tensor
    w_o: Tensor
    w_out: Tensor
    b_out: Tensor
    heads: int
    qk_norm: bool

    def branches(self, z: Tensor) -> Tensor:
        """Attn(LN1 z) + MLP(LN2 z), `[batch, index, d_model]`; differentiable."""
        batch, index, width = z.shape
        mixed, hidden = self.inner(z)
        rows = torch.addmm(self.b_out, mixed.reshape(-1, width), self.w_o)
        return torch.addmm(rows, hidden, self.w_out).view(batch, index, width)

    def inner(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed values `[batch, index, d_model]` and the MLP's hidden units `[batch * index, d_mlp]`."""
        batch, index, width = z.shape
        normed = F.layer_norm(z, (width,), eps=LN_EPS).view(-1, width)
        made = torch.addmm(self.b_in, normed, self.w_in)
        q, k, v = (part.view(batch, index, self.heads, -1).transpose(1, 2) for part in torch.split(made[:, : 3 * width], width, 1))
        if self.qk_norm:
            q, k = rms_normed(q), rms_normed(k)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, index, width)
        return mixed, gelu(made[:, 3 * width :])


def rms_normed(q: Tensor) -> Tensor:
    """Each head's vector over its root mean square."""
    return F.rms_norm(q, q.shape[-1:], eps=RMS_EPS)


def gelu(u: Tensor) -> Tensor:
    """GELU in its tanh form, u sigmoid(2 s(u)): without a graph by way of the sigmoid, which torch's CPU kernels do faster than tanh."""
    if torch.is_grad_enabled():
        return F.gelu(u, approximate="tanh")
    return torch.mul(u, u).mul_(GELU_CUBE).add_(GELU_SLOPE).mul_(u).sigmoid_().mul_(u)


class Part(nn.Module):
    """Parameters and hook points under transformer-lens names."""

    def __init__(
        self, parameters: Mapping[str, Tensor], points: tuple[str, ...] = (), point: Callable[[], nn.Module] = nn.Identity
    ) -> None:
        super().__init__()
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))
        for name in points:
            self.add_module(name, point())


class Equilibrium(nn.Module):
    """The model. `forward` gives logits at the fixed point; gradients come from estimators, not from backpropagating through it."""

    cfg: EqConfig
    embed: Any
    pos_embed: Any
    unembed: Any
    blocks: Any
    hook_embed: Any
    hook_z: Any

    def lay(self, cfg: EqConfig, seed: int, point: Callable[[], nn.Module] = nn.Identity) -> None:
        """Make parameters (drawn from the seed) and hook points."""
        self.cfg = cfg
        drawn = init(cfg, seed)

        def part(prefix: str, points: tuple[str, ...] = ()) -> Part:
            own = {name[len(prefix) + 1 :]: value for name, value in drawn.items() if name.rpartition(".")[0] == prefix}
            return Part(own, points, point)

        self.embed, self.pos_embed, self.unembed = part("embed"), part("pos_embed"), part("unembed")
        block: Any = part("blocks.0", ("hook_resid_pre", "hook_attn_out", "hook_mlp_out"))
        block.ln1, block.ln2 = part("blocks.0.ln1"), part("blocks.0.ln2")
        block.attn = part("blocks.0.attn", ("hook_q", "hook_k", "hook_v", "hook_attn_scores", "hook_pattern", "hook_z"))
        block.mlp = part("blocks.0.mlp", ("hook_pre", "hook_post"))
        self.blocks = nn.ModuleList([block])
        self.hook_embed, self.hook_z = point(), point()

    def embedded(self, idx: Int[Tensor, "batch index"]) -> Float[Tensor, "batch index d_model"]:
        """x: tokens and positions.

        Raises:
            ConfigError: for sequences longer than the context.
        """
        if idx.shape[1] > self.cfg.n_ctx:
            raise ConfigError(f"{idx.shape[1]} tokens do not fit a context of {self.cfg.n_ctx}")
        x: Tensor = self.embed.W_E[idx] + self.pos_embed.W_pos[: idx.shape[1]]
        return x

    def fused(self) -> Fused:
        """The block's weights laid out for speed; differentiable by the parameters."""
        block, width = self.blocks[0], self.cfg.d_model
        heads = [getattr(block.attn, name).transpose(0, 1).reshape(width, width) for name in ("W_Q", "W_K", "W_V")]
        qkv = torch.cat(heads, 1)
        w_in = torch.cat([block.ln1.w[:, None] * qkv, block.ln2.w[:, None] * block.mlp.W_in], 1)
        b_in = torch.cat([block.ln1.b @ qkv, block.ln2.b @ block.mlp.W_in + block.mlp.b_in])
        w_o = block.attn.W_O.reshape(width, width)
        return Fused(w_in, b_in, w_o, block.mlp.W_out, block.mlp.b_out, self.cfg.n_heads, self.cfg.qk_norm)

    def force(
        self, z: Float[Tensor, "batch index d_model"], x: Float[Tensor, "batch index d_model"]
    ) -> Float[Tensor, "batch index d_model"]:
        """F(z); differentiable by state, input and parameters."""
        return x - (1 + self.cfg.c) * z + self.fused().branches(z)

    def relax(
        self,
        x: Float[Tensor, "batch index d_model"],
        z0: Float[Tensor, "batch index d_model"] | None = None,
        steps: int | None = None,
        tol: float | None = None,
    ) -> RelaxResult:
        """The free phase: Euler steps without a graph.

        Args:
            x: embedded input.
            z0: where to begin; default x.
            steps: at most; default T1.
            tol: stop as soon as the residual is below this; None does all steps.
        """
        with torch.no_grad():
            return relax(self.fused(), x.detach(), self.cfg, z0, self.cfg.T1 if steps is None else steps, tol)

    def logits(self, z: Float[Tensor, "batch index d_model"]) -> Float[Tensor, "batch index d_vocab"]:
        """z W_U; differentiable."""
        made: Tensor = z @ self.unembed.W_U
        return made

    def forward(self, idx: Int[Tensor, "batch index"]) -> Float[Tensor, "batch index d_vocab"]:
        """Logits at the relaxed state, without a graph.

        `hook_embed` fires before the relaxation, so that what it returns is what is relaxed; `hook_z` on the relaxed state, which the
        logits are read from. The block's points fire once, in one evaluation of the branches at that state: they show, and what they
        return changes nothing, as the state is already there.
        """
        with torch.no_grad():
            x = self.hook_embed(self.embedded(idx))
            z = self.hook_z(self.relax(x).z)
            self._show(z)
            return self.logits(z)

    def _show(self, z: Tensor) -> None:
        """One evaluation of the branches with every hook point in its place."""
        block, cfg = self.blocks[0], self.cfg
        attn, mlp = block.attn, block.mlp
        z = block.hook_resid_pre(z)
        first, second = (F.layer_norm(z, (cfg.d_model,), norm.w, norm.b, LN_EPS) for norm in (block.ln1, block.ln2))
        q, k, v = (torch.einsum("bic,hcd->bihd", first, getattr(attn, name)) for name in ("W_Q", "W_K", "W_V"))
        if cfg.qk_norm:
            q, k = rms_normed(q), rms_normed(k)
        q, k, v = attn.hook_q(q), attn.hook_k(k), attn.hook_v(v)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(cfg.d_head)
        future = torch.ones(z.shape[1], z.shape[1], dtype=torch.bool, device=z.device).triu(1)
        pattern = attn.hook_pattern(attn.hook_attn_scores(scores.masked_fill(future, -torch.inf)).softmax(-1))
        mixed = attn.hook_z(torch.einsum("bhqk,bkhd->bqhd", pattern, v))
        block.hook_attn_out(torch.einsum("bihd,hdc->bic", mixed, attn.W_O))
        hidden = mlp.hook_post(F.gelu(mlp.hook_pre(second @ mlp.W_in + mlp.b_in), approximate="tanh"))
        block.hook_mlp_out(hidden @ mlp.W_out + mlp.b_out)


class PlainEquilibrium(Equilibrium):
    """The model without transformer-lens, for training."""

    def __init__(self, cfg: EqConfig, seed: int = 0) -> None:
        super().__init__()
        self.lay(cfg, seed)


def relax(fused: Fused, x: Tensor, cfg: EqConfig, z0: Tensor | None, steps: int, tol: float | None) -> RelaxResult:
    """The inner loop. Call it without a graph."""
    z = (x if z0 is None else z0).detach().clone(memory_format=torch.contiguous_format)
    width = z.shape[-1]
    rows, drive = z.view(-1, width), (cfg.eps * (x + fused.b_out)).view(-1, width)
    keep, done = 1 - cfg.eps * (1 + cfg.c), 0
    before = torch.empty_like(z)
    w_o, w_out = cfg.eps * fused.w_o, cfg.eps * fused.w_out
    res = math.inf
    for done in range(1, steps + 1):
        mixed, hidden = fused.inner(z)
        last = done == steps
        if last or tol is not None:
            before.copy_(z)
        torch.add(drive, rows, alpha=keep, out=rows)
        rows.addmm_(mixed.view(-1, width), w_o).addmm_(hidden, w_out)
        if tol is not None and not last:
            res = float((z - before).norm() / z.norm())
            if res < tol:
                break
    moved, size = (value.double().flatten(1).norm(dim=1) for value in (z - before, z))
    if steps < 1:
        moved = torch.full_like(size, math.inf)
    return RelaxResult(z, float(moved.norm() / size.norm()), moved / size, done)


def init(cfg: EqConfig, seed: int) -> dict[str, Tensor]:
    """Parameters by name at their initialisation, fp32, each drawn from (seed, name) alone."""
    width, heads, hidden = cfg.d_model, cfg.n_heads, cfg.d_mlp

    def draw(name: str, shape: tuple[int, ...], std: float) -> Tensor:
        return torch.randn(shape, generator=generator(seed, "equilibrium", name)) * std

    spread = 1 / math.sqrt(width)
    attention = dict.fromkeys(("W_Q", "W_K", "W_V"), ((heads, width, cfg.d_head), spread))
    drawn: dict[str, tuple[tuple[int, ...], float]] = {
        "embed.W_E": ((cfg.d_vocab, width), cfg.emb_std),
        "pos_embed.W_pos": ((cfg.n_ctx, width), cfg.emb_std),
        **{f"blocks.0.attn.{name}": value for name, value in attention.items()},
        "blocks.0.attn.W_O": ((heads, cfg.d_head, width), cfg.resinit * spread),
        "blocks.0.mlp.W_in": ((width, hidden), spread),
        "blocks.0.mlp.W_out": ((hidden, width), cfg.resinit / math.sqrt(hidden)),
        "unembed.W_U": ((width, cfg.d_vocab), UNEMBED_STD),
    }
    fixed = {f"blocks.0.ln{place}.{name}": torch.full((width,), float(name == "w")) for place in (1, 2) for name in ("w", "b")}
    fixed |= {"blocks.0.mlp.b_in": torch.zeros(hidden), "blocks.0.mlp.b_out": torch.zeros(width)}
    return {name: draw(name, shape, std) for name, (shape, std) in drawn.items()} | fixed


def fill(model: Equilibrium, state: Mapping[str, Tensor]) -> None:
    """Give the model these parameters.

    Raises:
        CheckpointError: if they are not its own.
    """
    own = dict(model.named_parameters())
    wrong = sorted(
        name for name in own.keys() | state.keys() if name not in own or name not in state or own[name].shape != state[name].shape
    )
    if wrong:
        raise CheckpointError(f"the weights do not fit this equilibrium model: {', '.join(wrong[:4])} differ; train it again")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
