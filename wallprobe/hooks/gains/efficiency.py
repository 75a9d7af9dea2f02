"""What a unit of the last MLP's gain buys (the gains study, 6.3.3): nats over a uniform guess, or perplexity over a unigram model's.

The unigram model must know tokens it is not scored on: the other prompts' (each prompt in turn left out) or a text's. Unseen tokens share
Witten and Bell's (1991) mass: p(w) = (c(w) + T / V) / (N + T), of N tokens and T types.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import stats
from wallprobe.errors import ConfigError
from wallprobe.store import texts

LEAST_SEEN = 0.5  # of the scored tokens; below, most of the unigram's perplexity is its guess about the unseen
OTHERS = "the other prompts"


@dataclass(frozen=True)
class Unigram:
    """A unigram model's losses on the prompts.

    Attributes:
        nll: loss a prompt in nats, mean over its next tokens, as the model's; NaN where it would mean nothing.
        source: what it was counted on.
        tokens, types: how many that holds (of the other prompts: all of them).
        seen: share of the scored tokens that it knows.
        reason: why there is no loss, empty where there is.
    """

    nll: Float[Tensor, " prompt"]
    source: str
    tokens: int
    types: int
    seen: float
    reason: str = ""


def log_probabilities(counts: Float[Tensor, " vocabulary"]) -> Float[Tensor, " vocabulary"]:
    """Witten and Bell's log p of every token; the uniform distribution where nothing was counted."""
    size = len(counts)
    seen, types = counts.sum(), (counts > 0).sum()
    if not types:
        return torch.full_like(counts, -math.log(size))
    return ((counts + types / size) / (seen + types)).log()


def unigram(rows: Sequence[Int[Tensor, "_"]], vocabulary: int, text: Int[Tensor, "_"] | None = None, source: str = OTHERS) -> Unigram:
    """A unigram model counted on a text, or on all prompts but the one it reads.

    Args:
        rows: token ids of the prompts; of each, every token but the first is scored, as the model's own loss is.
        vocabulary: how many tokens there are.
        text: ids to count on instead.
        source: what that text is called.

    Raises:
        ConfigError: if the text has tokens that the model does not know.
    """
    whole = torch.cat(list(rows)) if text is None else text
    if int(whole.max()) >= vocabulary:
        raise ConfigError(f"{source} has token id {int(whole.max())}, the model knows {vocabulary}: its tokenizer is another model's")
    counts = torch.bincount(whole, minlength=vocabulary).double()
    losses, known, scored = [], 0, 0
    for row in rows:
        own = counts - torch.bincount(row, minlength=vocabulary).double() if text is None else counts
        following = row[1:]
        losses.append(-log_probabilities(own)[following].mean() if len(following) else torch.tensor(math.nan, dtype=torch.float64))
        known, scored = known + int((own[following] > 0).sum()), scored + len(following)
    seen = known / scored if scored else math.nan
    reason = ""
    if not scored:
        reason = "the prompts have no next token"
    elif not seen >= LEAST_SEEN:
        reason = f"{source} hold{'s' if text is not None else ''} only {known} of the {scored} tokens scored"
        reason += "; give a text to count (--unigram FILE)" if text is None else "; count a longer text or one of the same kind"
    nll = torch.stack(losses)
    return Unigram(nll * math.nan if reason else nll, source, len(whole), int((counts > 0).sum()), seen, reason)


def read_text(path: str | Path) -> str:
    """A UTF-8 text to count.

    Raises:
        UnknownNameError: if there is no such file.
        ConfigError: if it cannot be read or is blank.
    """
    return texts.read_text(path, "text to count tokens of", "a UTF-8 file: --unigram FILE")


def text_tokens(tokenizer: Any, path: str | Path) -> Int[Tensor, "_"]:
    """Ids of a text.

    Raises:
        UnknownNameError, ConfigError: as `read_text`; if the model has no tokenizer.
    """
    if tokenizer is None:
        raise ConfigError("a run has no tokenizer to read a text with; leave --unigram out, its own other sequences are counted")
    ids = tokenizer(read_text(path), add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(list(ids), dtype=torch.int64)


def efficiency(
    nll: Float[Tensor, " prompt"],
    gains: dict[str, Float[Tensor, " prompt"]],
    finals: dict[str, float],
    vocabulary: int,
    reference: Unigram,
    weights: Float[Tensor, "draws prompt"],
) -> dict[str, Any]:
    """Both efficiencies by choice of tokens, with intervals over prompts that the loss and the gain are resampled alike on.

    eta = (ln V - loss) / F in nats per unit of gain; eta_ppl = exp(loss of the unigram model - loss) / F, without unit.

    Args:
        nll: the model's loss a prompt.
        gains: the last MLP's gain a prompt, by suffix ("" all tokens, "_no_sink").
        finals: the same over all prompts: F.
        vocabulary: V.
        reference: the unigram model.
        weights: of the bootstrap's resamples.
    """
    loss, base = _mean(nll), _mean(reference.nll)
    told: dict[str, Any] = {"nll": loss, "quality": math.log(vocabulary) - loss, "vocabulary": vocabulary}
    drawn, drawn_base = (stats.masked_means(weights, value[:, None])[:, 0] for value in (nll, reference.nll))
    for suffix, final in finals.items():
        under = stats.masked_means(weights, gains[suffix][:, None])[:, 0]
        told |= _bounded(f"eta{suffix}", (math.log(vocabulary) - loss) / final, (math.log(vocabulary) - drawn) / under, len(nll))
        told |= _bounded(f"eta_ppl{suffix}", math.exp(base - loss) / final, (drawn_base - drawn).exp() / under, len(nll))
    told |= {"ppl": math.exp(loss), "ppl_unigram": math.exp(base), "unigram": reference.source, "unigram_tokens": reference.tokens}
    return told | {"unigram_types": reference.types, "unigram_seen": reference.seen, "unigram_reason": reference.reason or None}


def _mean(values: Float[Tensor, " prompt"]) -> float:
    return float(values.nanmean())


def _bounded(name: str, value: float, drawn: Float[Tensor, " draws"], prompts: int) -> dict[str, float]:
    """A figure and its interval; one prompt has none."""
    if prompts < 2 or math.isnan(value):
        return {name: value, f"{name}_low": math.nan, f"{name}_high": math.nan}
    low, high = stats.interval(drawn)
    return {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
