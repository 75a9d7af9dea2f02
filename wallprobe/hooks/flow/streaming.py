"""What a model larger than memory would say after each layer: `flow`, block by block, in the same pass as its gains."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from wallprobe.hooks.attach.prompt_sets import PromptSet
from wallprobe.hooks.flow.lens_strips import Lens, ranks_of_products
from wallprobe.hooks.flow.report import LONG_NAMES, POSITIONS, Read, report
from wallprobe.hooks.gains.efficiency import OTHERS, text_tokens
from wallprobe.hooks.gains.efficiency import unigram as count_unigram
from wallprobe.hooks.gains.report import Settings
from wallprobe.hooks.gains.streaming import EVERY, stream_gains, subject_of
from wallprobe.models.streamed import Streamed
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result


def stream_flow(
    model: Streamed,
    prompts: PromptSet,
    *,
    unigram: str | Path | None = None,
    seed: int = 42,
    draws: int = 1000,
    state: Path | None = None,
    max_ram: int | None = None,
    every: float = EVERY,
    device: str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """What `flow` gives, block by block; ranks are of the first `lens_strips.MOST` states.

    Args:
        model: an opened checkpoint.
        prompts: what it reads.
        unigram, seed, draws: as `flow`.
        state, max_ram, every, device, on_progress: as `stream_gains`.

    Raises:
        CheckpointError: as `Streamed.head` and `stream_gains`.
        ConfigError, UnknownNameError, InstrumentError: as `flow` and `stream_gains`.
    """
    watch = Stopwatch()
    text = None if unigram is None else text_tokens(model.tokenizer, unigram)
    reference = count_unigram(prompts.tokens, model.vocabulary, text, OTHERS if unigram is None else Path(unigram).name)
    lens = Lens(model, prompts)
    settings = Settings.make("sublayer", "ratio_of_means", "all", seed, draws)
    measured = stream_gains(
        model, prompts, settings, state=state, max_ram=max_ram, every=every, device=device, visitor=lens, on_progress=on_progress
    )
    sinks = {(item["prompt"], item["position"]) for item in measured.manifest["sinks"]}
    keep = torch.tensor([place not in sinks for place in lens.places])
    ranked = len(lens.products[0])
    chosen = {name: keep[:ranked] if name else torch.ones(ranked, dtype=torch.bool) for name in POSITIONS}
    ranks = {name: [ranks_of_products(layer[some][:, some]) for layer in lens.products] for name, some in chosen.items()}
    subject = subject_of(model, device, measured.summary["peak_gib"])
    columns = _columns(lens, len(prompts.tokens), keep)
    read = Read(subject, prompts, measured, columns, ranks, ranked, model.vocabulary, reference, unigram is not None, math.nan)
    return report(read, seed, draws, watch)


def _columns(lens: Lens, prompts: int, keep: Tensor) -> dict[str, Float[Tensor, "layer prompt"]]:
    """A key of `LONG_NAMES` -> figures of every layer and prompt."""
    columns = {name: torch.full((len(lens.entropy), prompts), math.nan, dtype=torch.float64) for name in LONG_NAMES}
    for prompt in range(prompts):
        own = torch.tensor([place for place, (whose, _) in enumerate(lens.places) if whose == prompt])
        columns["lens_entropy"][:, prompt] = lens.entropy[:, own[-1]]
        columns["lens_entropy_mean"][:, prompt] = lens.entropy[:, own[keep[own]]].mean(dim=-1)
        columns["lens_nll"][:, prompt] = lens.loss[:, own].nanmean(dim=-1)
        columns["lens_top1"][:, prompt] = lens.first[:, own].nanmean(dim=-1)
    return columns
