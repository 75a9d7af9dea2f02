"""What a model would say after each layer, and how many directions its states take: logit-lens entropy, effective rank, efficiency.

The logit lens applies the final norm and the unembedding to the residual after a block; after the last one it must give the logits.
Entropy by layer: the gains study, 6.3.1; effective rank: Roy and Vetterli 2007.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.errors import InstrumentError
from wallprobe.hooks.attach.any_model import on_prompts
from wallprobe.hooks.attach.prompt_sets import PromptSet, batches
from wallprobe.hooks.flow.report import LONG_NAMES, POSITIONS, Read, report
from wallprobe.hooks.gains.efficiency import OTHERS, text_tokens
from wallprobe.hooks.gains.efficiency import unigram as count_unigram
from wallprobe.hooks.gains.measure import gains
from wallprobe.hooks.gains.report import Subject
from wallprobe.models import Loaded, hook_name
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result

TOLERANCE = 1e-4  # of the largest logit: the last row against the model's own
LEVEL = 1 << 22  # of our hooks alone
MOST = 4096  # states of which singular values are taken


def residuals(
    loaded: Loaded, tokens: Int[Tensor, "batch index"]
) -> tuple[list[Float[Tensor, "batch index d_model"]], Float[Tensor, "batch index vocabulary"]]:
    """Every block's resid_post and the logits, one forward pass.

    Raises:
        InstrumentError: if a block's hook does not fire exactly once.
    """
    model, points = cast(Any, loaded.model), loaded.points
    seen: list[Tensor] = []
    placed = tokens.to(next(loaded.model.parameters()).device)
    options = {} if loaded.tokenizer is None else {"attention_mask": torch.ones_like(placed)}
    with ExitStack() as stack:
        for layer in range(loaded.n_layers):
            point = points[hook_name(layer, "resid_post")]
            point.add_hook(lambda value, hook=None: seen.append(value.detach()), level=LEVEL)
            stack.callback(point.remove_hooks, "fwd", level=LEVEL)
        stack.enter_context(torch.no_grad())
        logits = model(placed, **options)
    if len(seen) != loaded.n_layers:
        raise InstrumentError(f"{loaded.name}: {len(seen)} of {loaded.n_layers} residuals fired in one forward pass")
    return seen, logits.detach()


def lens(loaded: Loaded, residual: Float[Tensor, "batch index d_model"]) -> Float[Tensor, "batch index vocabulary"]:
    """Logits that the final norm and the unembedding make of a residual.

    Raises:
        InstrumentError: if the model shows neither by a known name.
    """
    model = cast(Any, loaded.model)
    missing = [name for name in ("ln_final", "unembed") if not hasattr(model, name)]
    if missing:
        raise InstrumentError(f"{loaded.name} has no module {' and '.join(missing)}, of which the logit lens is made")
    with torch.no_grad():
        logits: Tensor = model.unembed(model.ln_final(residual))
        cap = soft_cap(loaded)
        return logits if cap is None else cap * torch.tanh(logits / cap)


def soft_cap(loaded: Loaded) -> float | None:
    """What the model bends its logits below (Gemma 2: cap tanh(logits / cap)), None if it does not."""
    model: Any = loaded.model
    told = [getattr(model.cfg, "output_logits_soft_cap", None)]
    told += [getattr(getattr(one, "config", None), "final_logit_softcapping", None) for one in (getattr(model, "original_model", None),)]
    return next((float(cap) for cap in told if cap is not None and cap > 0), None)


@on_prompts
def flow(
    loaded: Loaded,
    prompts: PromptSet,
    *,
    unigram: str | Path | None = None,
    seed: int = 42,
    draws: int = 1000,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Entropy, loss and rank after every layer, and the efficiency of the last MLP's gain.

    Args:
        loaded: the model.
        prompts: what it reads.
        unigram: UTF-8 text whose tokens make the unigram model that perplexity is held against; by default the other prompts.
        seed: of the bootstrap over prompts.
        draws: bootstrap resamples.
        on_progress: told (prompts done, prompts in all).

    Returns:
        Result of kind "flow", table by layer. `eta` is (ln V - loss) / gain of the last MLP, nats per unit of gain; `eta_ppl` the unigram
        model's perplexity over the model's, per unit of gain.

    Raises:
        InstrumentError: if the last row of the lens is not the model's logits, and as `gains`.
        ConfigError, UnknownNameError: as `efficiency.text_tokens`.
    """
    watch = Stopwatch()
    vocabulary = int(cast(Any, loaded.model).cfg.d_vocab)
    text = None if unigram is None else text_tokens(loaded.tokenizer, unigram)
    reference = count_unigram(prompts.tokens, vocabulary, text, OTHERS if unigram is None else Path(unigram).name)
    measured = gains(loaded, prompts, seed=seed, draws=draws)
    sinks = {(item["prompt"], item["position"]) for item in measured.manifest["sinks"]}
    columns, states, error = _read(loaded, prompts, sinks, on_progress)
    ranks = {name: [ranks_of(torch.cat([row[keep] if name else row for row, keep in layer])) for layer in states] for name in POSITIONS}
    ranked = min(MOST, sum(len(row) for row in prompts.tokens))
    read = Read(Subject.of(loaded), prompts, measured, columns, ranks, ranked, vocabulary, reference, unigram is not None, error)
    return report(read, seed, draws, watch)


def _read(
    loaded: Loaded, prompts: PromptSet, sinks: set[tuple[int, int]], on_progress: Callable[[int, int], None] | None
) -> tuple[dict[str, Tensor], list[list[tuple[Tensor, Tensor]]], float]:
    """Per-prompt figures `[layer, prompt]`, every layer's states with which of them are no sinks, the last row's error."""
    columns = {name: torch.full((loaded.n_layers, len(prompts.tokens)), math.nan, dtype=torch.float64) for name in LONG_NAMES}
    states: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(loaded.n_layers)]
    worst, done = 0.0, 0
    for members in batches(prompts):
        tokens = torch.stack([prompts.tokens[index] for index in members])
        keep = torch.tensor([[(index, place) not in sinks for place in range(tokens.shape[1])] for index in members])
        seen, logits = residuals(loaded, tokens)
        for layer, residual in enumerate(seen):
            said = lens(loaded, residual)
            if layer + 1 == loaded.n_layers:
                worst = max(worst, _check_last(loaded, said, logits))
            for name, value in _figures(said.float().cpu(), tokens, keep).items():
                columns[name][layer, members] = value
            states[layer] += [(row, kept) for row, kept in zip(residual.cpu().double(), keep, strict=True)]
        done += len(members)
        if on_progress is not None:
            on_progress(done, len(prompts.tokens))
    return columns, states, worst


def _check_last(loaded: Loaded, said: Tensor, logits: Tensor) -> float:
    error = float((said - logits).abs().max() / logits.abs().max().clamp_min(1e-30))
    if not error <= TOLERANCE:
        raise InstrumentError(
            f"{loaded.name}: the logit lens after the last layer differs from the logits by {error:.1e} of the largest (at most "
            f"{TOLERANCE:.0e}); something stands between the final norm, the unembedding and the logits"
        )
    return error


def _figures(
    logits: Float[Tensor, "batch index vocabulary"], tokens: Int[Tensor, "batch index"], keep: Tensor
) -> dict[str, Float[Tensor, " batch"]]:
    log_p = logits.log_softmax(dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1).double()
    found = {"lens_entropy": entropy[:, -1], "lens_entropy_mean": (entropy * keep).sum(dim=-1) / keep.sum(dim=-1)}
    if tokens.shape[1] > 1:
        following = tokens[:, 1:, None]
        found["lens_nll"] = -log_p[:, :-1].gather(-1, following)[..., 0].double().mean(dim=-1)
        found["lens_top1"] = (logits[:, :-1].argmax(dim=-1) == following[..., 0]).double().mean(dim=-1)
    return found


def ranks_of(states: Float[Tensor, "state d_model"]) -> tuple[float, float]:
    """Effective rank and participation ratio of centred states; the first 4,096 of them. NaN below two states."""
    if len(states) < 2:
        return math.nan, math.nan
    centred = states[:MOST] - states[:MOST].mean(dim=0)
    share = torch.linalg.svdvals(centred).square()
    share = share / share.sum()
    entropy = -(share * share.clamp_min(1e-300).log()).sum()
    return float(entropy.exp()), float(1 / share.square().sum())
