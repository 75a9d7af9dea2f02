"""Attention as a sheaf: restriction maps sqrt(A_ij) W_V, their size, the Dirichlet energy they measure, and the Laplacian's trace.

Edges are i > j with weight A_ij; L_F = L_graph (of A + A^T, no diagonal) x W_V^T W_V. The ratio of a map's norm to W_V's is sqrt(A_ij),
at most 1 whatever the weights, so absolute norms stand beside it. The gains study, 6.7; its Laplacian is mended here.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from wallprobe.errors import InstrumentError
from wallprobe.hooks.attach.any_model import on_prompts
from wallprobe.hooks.attach.prompt_sets import FIRST_TOKEN, PromptSet, batches
from wallprobe.hooks.gains.measure import measure_norms
from wallprobe.hooks.gains.operators import head_weights, product_norms
from wallprobe.hooks.gains.regimes import argmax
from wallprobe.hooks.gains.report import Subject, sink_records
from wallprobe.models import Loaded, on_input
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

LEVEL = 1 << 23  # of our hooks alone
ZERO = 1e-12  # of the largest eigenvalue: fp64 leaves zeros below 1e-14 of it
LONG_NAMES = {
    "mean_sqrt_a": ("mean sqrt(A_ij) over edges: the map's norm over W_V's, at most 1 always", "1"),
    "sigma_v": ("largest singular value of W_V", "1"),
    "sigma_ov": ("largest singular value of W_O W_V", "1"),
    "map_v": ("mean sqrt(A) times sigma_max(W_V)", "1"),
    "map_ov": ("mean sqrt(A) times sigma_max(W_O W_V)", "1"),
    "contracting_share": ("share of heads whose mean sqrt(A) sigma_max(W_V) is below 1", "fraction"),
    "energy": ("sum_i>j A_ij |W_V(x_i - x_j)|^2 over sum_i |W_V x_i|^2: 0 is consensus", "1"),
    "energy_no_sink": ("the same without edges and tokens of sinks", "1"),
    "trace": ("trace of the Laplacian over tokens: 2 (n - tr A) |W_V|_F^2 / n", "1"),
    "gap": ("least eigenvalue of the graph's Laplacian above 0", "1"),
    "harmonic_share": ("dimension of the harmonic space over that of all states: 1 - (n - c) rank(W_V) / (n d), c components", "fraction"),
}


def head_figures(
    pattern: Float[Tensor, "head query key"],
    given: Float[Tensor, "index d_model"],
    value: Float[Tensor, "head d_model d_head"],
    keep: Tensor,
) -> dict[str, Float[Tensor, " head"]]:
    """Of one prompt and layer: what depends on the tokens.

    Args:
        pattern: attention probabilities A.
        given: what the attention module reads, x.
        value: W_V of each query head.
        keep: which tokens are no sinks.
    """
    n = len(given)
    lower = torch.ones(n, n, dtype=torch.bool).tril(-1)
    seen = torch.einsum("id,hde->hie", given, value)
    gap = (seen[:, :, None] - seen[:, None]).square().sum(dim=-1)
    edges, size = pattern * lower, seen.square().sum(dim=-1)
    clean = edges * (keep[:, None] & keep[None])
    both = edges + edges.mT
    laplacian = torch.diag_embed(both.sum(dim=-1)) - both
    spectrum = torch.linalg.eigvalsh(laplacian)
    # An attention weight may round to 0, and a token that nothing reads falls off: as many zeros as connected components.
    parts = (spectrum <= ZERO * spectrum[:, -1:].clamp_min(1e-30)).sum(dim=-1)
    least = spectrum.gather(-1, parts.clamp_max(n - 1)[:, None])[:, 0]
    return {
        "mean_sqrt_a": (edges.sqrt().sum(dim=(1, 2)) / lower.sum()) if n > 1 else torch.full((len(pattern),), torch.nan).double(),
        "energy": (edges * gap).sum(dim=(1, 2)) / size.sum(dim=-1),
        "energy_no_sink": (clean * gap).sum(dim=(1, 2)) / (size * keep).sum(dim=-1),
        "graph_trace": laplacian.diagonal(dim1=1, dim2=2).sum(dim=-1) / n,
        "gap": torch.where(parts < n, least, torch.nan),
        "joined_share": (n - parts).double() / n,
    }


@on_prompts
def maps(loaded: Loaded, prompts: PromptSet, *, on_progress: Callable[[int, int], None] | None = None) -> Result:
    """Restriction maps, energies and traces of every layer, means over heads and prompts.

    Args:
        loaded: the model.
        prompts: what it reads.
        on_progress: told (prompts done, prompts in all).

    Returns:
        Result of kind "maps", table by layer; `trace_peak` is the layer of the greatest trace.

    Raises:
        InstrumentError: if an attention pattern does not fire once a layer, or is no distribution over the tokens before.
    """
    watch = Stopwatch()
    weights = [_weights(loaded, layer) for layer in range(loaded.n_layers)]
    found: list[list[dict[str, Tensor]]] = [[] for _ in range(loaded.n_layers)]
    sinks: list[dict[str, Any]] = []
    done = 0
    for members in batches(prompts):
        tokens = torch.stack([prompts.tokens[index] for index in members])
        norms = measure_norms(loaded, tokens)
        part = PromptSet(
            prompts.name,
            tuple(prompts.texts[index] for index in members),
            tuple(tokens),
            tuple(prompts.pieces[index] for index in members),
        )
        records = [item | {"prompt": members[item["prompt"]]} for item in sink_records(norms, part)]
        sinks += records
        taken = {(item["prompt"], item["position"]) for item in records}
        keep = torch.tensor([[(index, place) not in taken for place in range(tokens.shape[1])] for index in members])
        for layer, (pattern, given) in enumerate(_patterns(loaded, tokens)):
            _check_pattern(loaded, layer, pattern)
            value = weights[layer]["value"]
            found[layer] += [head_figures(pattern[row], given[row], value, keep[row]) for row in range(len(members))]
        done += len(members)
        if on_progress is not None:
            on_progress(done, len(prompts.tokens))
    rows = [_layer(one, weight, loaded.d_model) for one, weight in zip(found, weights, strict=True)]
    variables: dict[str, Any] = {
        name: (("layer",), [row[name] for row in rows], unit, long_name) for name, (long_name, unit) in LONG_NAMES.items()
    }
    data = dataset({"layer": list(range(loaded.n_layers))}, variables, model=loaded.name, prompts=prompts.name)
    subject = Subject.of(loaded)
    manifest = provenance(
        config={"model": loaded.name, "prompts": prompts.name, "data_hash": prompts.data_hash},
        device=subject.device,
        dtype="float32, sums in float64",
        watch=watch,
        subject=subject.label,
        weight_hash=loaded.weight_hash,
        weight_processing=loaded.processing,
        data_hash=prompts.data_hash,
        formula="rho_ij = sqrt(A_ij) W_V, edges i > j; L = L_graph(A + A^T, no diagonal) x W_V^T W_V",
        first_token=FIRST_TOKEN,
        sinks=sinks,
    )
    return Result("maps", data, ("layer",), _summary(loaded, prompts, rows), manifest)


def _weights(loaded: Loaded, layer: int) -> dict[str, Tensor]:
    value, out = head_weights(loaded, layer)
    return {
        "value": value,
        "sigma_v": torch.linalg.matrix_norm(value, 2),
        "sigma_ov": product_norms(value, out),
        "frobenius": value.square().sum(dim=(1, 2)),
        "rank": torch.linalg.matrix_rank(value).double(),
    }


def _layer(found: list[dict[str, Tensor]], weight: dict[str, Tensor], d_model: int) -> dict[str, float]:
    """Means over prompts, then over heads."""
    mean = {name: torch.stack([one[name] for one in found]).nanmean(dim=0) for name in found[0]}
    root = mean["mean_sqrt_a"]
    told = {
        "mean_sqrt_a": root,
        "sigma_v": weight["sigma_v"],
        "sigma_ov": weight["sigma_ov"],
        "map_v": root * weight["sigma_v"],
        "map_ov": root * weight["sigma_ov"],
        "contracting_share": (root * weight["sigma_v"] < 1).double(),
        "energy": mean["energy"],
        "energy_no_sink": mean["energy_no_sink"],
        "trace": mean["graph_trace"] * weight["frobenius"],
        "gap": mean["gap"],
        "harmonic_share": 1 - mean["joined_share"] * weight["rank"] / d_model,
    }
    return {name: float(value.mean()) for name, value in told.items()}


def _patterns(loaded: Loaded, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Attention patterns and what attention reads, by layer, fp64 on the CPU."""
    model, points = cast(Any, loaded.model), loaded.points
    pattern: dict[int, Tensor] = {}
    given: dict[int, Tensor] = {}
    placed = tokens.to(next(loaded.model.parameters()).device)
    options = {} if loaded.tokenizer is None else {"attention_mask": torch.ones_like(placed)}

    def keep(into: dict[int, Tensor], layer: int) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any = None) -> None:
            if layer in into:
                raise InstrumentError(f"{loaded.name}: attention of layer {layer} fired twice in one forward pass")
            into[layer] = value.detach().cpu().double()

        return hook

    with ExitStack() as stack:
        for layer in range(loaded.n_layers):
            point = points.get(f"blocks.{layer}.attn.hook_pattern")
            if point is None:
                raise InstrumentError(f"{loaded.name} shows no attention pattern of layer {layer}")
            point.add_hook(keep(pattern, layer), level=LEVEL)
            stack.callback(point.remove_hooks, "fwd", level=LEVEL)
            stack.callback(on_input(loaded, f"blocks.{layer}.attn", keep(given, layer)))
        stack.enter_context(torch.no_grad())
        model(placed, return_type=None, **options)
    silent = [layer for layer in range(loaded.n_layers) if layer not in pattern or layer not in given]
    if silent:
        raise InstrumentError(f"{loaded.name}: attention patterns of layers {silent} did not fire")
    return [(pattern[layer], given[layer]) for layer in range(loaded.n_layers)]


def _check_pattern(loaded: Loaded, layer: int, pattern: Float[Tensor, "batch head query key"]) -> None:
    n = pattern.shape[-1]
    ahead = pattern[..., torch.ones(n, n, dtype=torch.bool).triu(1)]
    off = float((pattern.sum(dim=-1) - 1).abs().max())
    if off > 1e-4 or bool((ahead.abs() > 1e-6).any()):
        raise InstrumentError(
            f"{loaded.name}: the pattern of layer {layer} is no distribution over the tokens before (rows off by {off:.1e})"
        )


def _summary(loaded: Loaded, prompts: PromptSet, rows: list[dict[str, float]]) -> dict[str, Any]:
    share = sum(row["contracting_share"] for row in rows) / len(rows)
    told = {
        "model": loaded.name,
        "n_layers": loaded.n_layers,
        "prompts": prompts.name,
        "n_prompts": len(prompts.tokens),
        "contracting_share": share,
        "mean_sqrt_a": sum(row["mean_sqrt_a"] for row in rows) / len(rows),
        "map_v_low": min(row["map_v"] for row in rows),
        "map_v_high": max(row["map_v"] for row in rows),
        "map_ov_low": min(row["map_ov"] for row in rows),
        "map_ov_high": max(row["map_ov"] for row in rows),
        "energy_first": rows[0]["energy"],
        "energy_last": rows[-1]["energy"],
        "energy_first_no_sink": rows[0]["energy_no_sink"],
        "energy_last_no_sink": rows[-1]["energy_no_sink"],
        "l_star_trace_peak": argmax([row["trace"] for row in rows]),
    }
    told["finding"] = (
        f"In {share:.0%} of heads the mean restriction map shrinks its input (mean sqrt(A) x sigma_max(W_V) below 1), though sqrt(A) "
        f"alone is {told['mean_sqrt_a']:.2f} and never above 1; the normalised Dirichlet energy goes from {rows[0]['energy']:.3g} in "
        f"layer 0 to {rows[-1]['energy']:.3g} in the last."
    )
    return told
