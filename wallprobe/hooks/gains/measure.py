"""Layer gains: how loud each sub-layer is against what it reads, on raw weights (the gains study, 6.1).

One forward pass a batch of equal-length prompts; nothing but norms leaves the hooks, so memory does not grow with width or depth.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from wallprobe.errors import InstrumentError
from wallprobe.hooks.attach.any_model import on_prompts
from wallprobe.hooks.attach.prompt_sets import PromptSet, batches
from wallprobe.hooks.gains import definitions
from wallprobe.hooks.gains.definitions import Norms
from wallprobe.hooks.gains.meter import NormMeter
from wallprobe.hooks.gains.operators import operator_terms
from wallprobe.hooks.gains.report import Settings, Subject, report
from wallprobe.models import Loaded
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result


def measure_norms(loaded: Loaded, tokens: Int[Tensor, "batch index"]) -> list[Norms]:
    """Every norm the gains are made of, one forward pass.

    Args:
        loaded: the model.
        tokens: prompts of one length, no padding.

    Returns:
        One `Norms` a prompt, fp64, on the CPU.

    Raises:
        InstrumentError: if a hook did not fire exactly once, if resid_pre + attn_out + mlp_out differs from resid_post by more than
            `IDENTITY_TOLERANCE` of the largest norm, or if the last resid_post is not what the final norm reads.
    """
    model: Any = loaded.model
    placed = tokens.to(next(loaded.model.parameters()).device)
    # A stated mask: without it some models take a token that equals the padding id for padding.
    options = {} if loaded.tokenizer is None else {"attention_mask": torch.ones_like(placed)}
    with NormMeter(loaded) as meter, torch.inference_mode():
        model(placed, return_type=None, **options)
    if not meter.last:
        raise InstrumentError(f"{loaded.name}: no block fired, nor the final norm; no gain reported")
    return meter.last


def _measure_all(loaded: Loaded, prompts: PromptSet, on_progress: Callable[[int, int], None] | None) -> list[Norms]:
    found: dict[int, Norms] = {}
    for members in batches(prompts):
        norms = measure_norms(loaded, torch.stack([prompts.tokens[index] for index in members]))
        found |= dict(zip(members, norms, strict=True))
        if on_progress is not None:
            on_progress(len(found), len(prompts.tokens))
    return [found[index] for index in range(len(prompts.tokens))]


@on_prompts
def gains(
    loaded: Loaded,
    prompts: PromptSet,
    definition: str = definitions.DEFAULT,
    tokens: str = "ratio_of_means",
    positions: str = "all",
    *,
    seed: int = 42,
    draws: int = 1000,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Gain of every attention and MLP sub-layer, with and without attention-sink tokens.

    G_attn(l) = mean_t |A_l| / mean_t |LN1(x_l)| and G_mlp(l) = mean_t |M_l| / mean_t |LN2(x_l)| per prompt, then the mean over prompts:
    definition `sublayer`, the study's, and the default so that its figures are reproduced. It is no property of the function computed
    (scaling a norm up and the weights behind it down changes it): use `sublayer_unit` across model families. Others:
    `definitions.DEFINITIONS`. Source: the gains study, 6.1, and its author's code.

    Args:
        loaded: the model, raw weights, fp32.
        prompts: see `prompt_sets.prompt_set`.
        definition: a key of `definitions.DEFINITIONS`.
        tokens: a key of `definitions.REDUCTIONS`.
        positions: a key of `definitions.POSITIONS`: which of them the regime and the bottleneck are read from. All are measured.
        seed: of the bootstrap over prompts, and of the random directions of `jacobian`.
        draws: bootstrap resamples.
        on_progress: told (prompts done, prompts in all).

    Returns:
        Result of kind "gains", table by layer; gains are ratios without unit. `*_no_sink` leaves out tokens whose residual is above
        10 times the prompt's median at any layer.

    Raises:
        UnknownNameError: for an unknown definition, reduction or choice of positions.
        InstrumentError: as `measure_norms`.
    """
    settings = Settings.make(definition, tokens, positions, seed, draws)
    watch = Stopwatch()
    norms = _measure_all(loaded, prompts, on_progress)
    if settings.definition.terms is None:
        terms = operator_terms(loaded, prompts, settings.definition, list(batches(prompts)), seed)
    else:
        terms = [settings.definition.terms(one, loaded.d_model) for one in norms]
    return report(Subject.of(loaded), prompts, settings, norms, terms, watch)
