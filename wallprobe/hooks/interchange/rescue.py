"""Writer-state rescue: does a state that was trained to answer still answer where the loss never reached? Source: Misra's code.

*State-matched.* All that x' = a x + b (mod p) carries from one token to the next is the token. So an index u beyond the wall is matched
by an index s inside it of the same sequence if x_u = x_s: then x_(u+1) = x_(s+1), and the correct next token is the same. That happens
where the sequence comes back to a token: its period, the order of a, divides u - s (for p = 17: 2, 4 or 8). Sequences that stand still
are left out (copying would answer them), and so are indices s < 2, which have not seen three tokens and cannot know the rule.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wallprobe import models, stats
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.findings import beyond, difference
from wallprobe.hooks.attach import cache
from wallprobe.hooks.attach.interventions import Intervention, NormMatched, Swap
from wallprobe.hooks.interchange.pairs import mismatched
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.store.runs import Run
from wallprobe.tasks.recurrence import RecurrenceTask

FIRST = 2  # index from which three tokens are seen
LEAST = 30  # matched sequences
AGREEMENT = 1e-3  # log-probability by which the moved last state may differ from the donor's answer
FIGURES: Mapping[str, tuple[str, str]] = {
    "accuracy_before": ("fraction", "first choice is right at the unsupervised index, nothing moved"),
    "accuracy_donor": ("fraction", "first choice is right at the matched supervised index itself"),
    "accuracy": ("fraction", "first choice is right after the sequence's own matched state was moved there"),
    "accuracy_redirect": ("fraction", "first choice is the other program's next token, after that program's state was moved there"),
    "accuracy_redirect_own": ("fraction", "first choice is still the sequence's own next token then"),
    "accuracy_redirect_rule": ("fraction", "first choice is what the other program's rule makes of the token that stands there"),
    "accuracy_random": ("fraction", "first choice is right after the state of a noise sequence was moved there"),
    "accuracy_norm": ("fraction", "first choice is right with a random vector of the moved state's norm"),
    "p_before": ("probability", "probability of the correct token, nothing moved"),
    "p": ("probability", "probability of the correct token after its own matched state was moved there"),
    "p_redirect": ("probability", "probability of the other program's next token after its state was moved there"),
}


@dataclass(frozen=True)
class Matched:
    """Program sequences with a matched pair of indices each, and another program to take a state from.

    Attributes:
        tokens: the sequences.
        source: supervised index s.
        target: unsupervised index u with the same token.
        answer: the next token, the same after both.
        other: row of another program whose next token, after its own s, is another one.
        rule: what that program's rule makes of the token at u.
    """

    tokens: Int[Tensor, "sequence index"]
    source: Int[Tensor, " sequence"]
    target: Int[Tensor, " sequence"]
    answer: Int[Tensor, " sequence"]
    other: Int[Tensor, " sequence"]
    rule: Int[Tensor, " sequence"]


def matches(tokens: Int[Tensor, "sequence index"], horizon: int) -> Bool[Tensor, "sequence source target"]:
    """Which supervised and unsupervised indices hold the same token, in sequences that do not stand still."""
    inside, beyond = tokens[:, FIRST:horizon], tokens[:, horizon:-1]
    moving = tokens[:, FIRST + 1 : horizon + 1] != inside
    return (inside[:, :, None] == beyond[:, None, :]) & moving[:, :, None]


def draw_matched(task: RecurrenceTask, horizon: int, count: int, seed: int) -> Matched:
    """About `count` matched sequences: programs are drawn, and of each that returns one pair (s, u) is taken at random.

    Raises:
        ConfigError: if too few return, or no supervised index has seen three tokens.
    """
    if horizon <= FIRST or task.length < horizon + 2:
        raise ConfigError(
            f"with {horizon} supervised of {task.length} tokens no index inside the wall knows the rule, or none is beyond it"
        )
    rng = generator(seed, "rescue")
    drawn = task.sample_programs(4 * count, rng)
    found = matches(drawn.tokens, horizon)
    flat = found.flatten(1)
    choice = torch.where(flat, torch.rand(flat.shape, generator=rng), -1.0).argmax(1)
    keep = flat.any(1).nonzero()[:count, 0]
    if len(keep) < LEAST:
        raise ConfigError(f"{len(keep)} of {4 * count} programs come back to a token behind the wall; ask for more with --sequences")
    beyond = found.shape[2]
    source, target = choice[keep] // beyond + FIRST, choice[keep] % beyond + horizon
    tokens, rows = drawn.tokens[keep], torch.arange(len(keep))
    answer = tokens[rows, target + 1]
    order = torch.randperm(len(rows), generator=rng)
    shuffled = torch.empty_like(order)
    shuffled[order] = order.roll(1)
    other = mismatched(answer, shuffled)
    rule = (drawn.slope[keep][other] * tokens[rows, target] + drawn.offset[keep][other]) % task.modulus
    return Matched(tokens, source, target, answer, other, rule)


@dataclass(frozen=True)
class Mover:
    """Puts a state at each sequence's own index and reads there.

    Attributes:
        at: the index in each sequence.
        base_log: log-probabilities there with nothing moved.
    """

    loaded: models.Loaded
    tokens: Int[Tensor, "sequence index"]
    at: Int[Tensor, " sequence"]
    base_log: Float[Tensor, "sequence vocab"]

    def __call__(
        self, hook: str, intervention: Intervention, base: Float[Tensor, "sequence width"], state: Float[Tensor, "sequence width"]
    ) -> tuple[Float[Tensor, "sequence vocab"], float]:
        """Log-probabilities (fp64) at the index, and the largest change at the hook.

        Raises:
            InstrumentError: if the hook did not fire exactly once.
        """
        rows, fired = torch.arange(len(self.at)), []

        def put(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            moved = intervention(base, state).to(value)
            fired.append(float((moved - value[rows, self.at]).abs().max()))
            value[rows, self.at] = moved
            return value

        logits = cache.run(self.loaded, self.tokens, {hook: put})
        if len(fired) != 1:
            raise InstrumentError(f"hook {hook} of {self.loaded.name} fired {len(fired)} times in one forward pass; expected once")
        return logits[rows, self.at].double().log_softmax(-1).cpu(), fired[0]


def stages(n_layers: int) -> list[str]:
    """The hooks that states are moved at: the embedding, then after each block."""
    return [models.hook_name(0, "resid_pre"), *(models.hook_name(layer, "resid_post") for layer in range(n_layers))]


def rescue(
    run: Run, *, sequences: int = 1000, seed: int = 0, device: str = "cpu", on_stage: Callable[[int, int], None] | None = None
) -> Result:
    """Move matched supervised states beyond the wall, at the embedding and after each block.

    Args:
        run: a finished run of the task recurrence.
        sequences: matched program sequences.
        seed: of sequences, controls and bootstrap.
        device: torch device.
        on_stage: called with (stages done, stages in all).

    Returns:
        Result of kind "rescue", table over block (0: the embedding, k: after k blocks); accuracy by unsupervised index beside it.

    Raises:
        ConfigError: if too few sequences are matched, or the run is of another task.
        CheckpointError: if the weights are damaged.
        InstrumentError: if a hook did not fire exactly once, a move changed nothing, a self-move something, or the state moved after the
            last block did not give the donor's own answer.
    """
    watch = Stopwatch()
    task, horizon = RecurrenceTask.from_manifest(run.manifest["task"]), int(run.manifest["horizon"])
    matched = draw_matched(task, horizon, sequences, seed)
    loaded = models.load_run(run, device)
    hooks, tokens, rows = stages(loaded.n_layers), matched.tokens[:, :-1], torch.arange(len(matched.tokens))
    states, logits = _observe(loaded, tokens, hooks)
    noise = torch.randint(task.modulus, tokens.shape, generator=generator(seed, "rescue noise"))
    noisy, _ = _observe(loaded, noise, hooks)
    base_log, donor_log = (logits[rows, index].double().log_softmax(-1).cpu() for index in (matched.target, matched.source))
    mover = Mover(loaded, tokens, matched.target, base_log)
    weights = stats.resamples(len(rows), generator(seed, "rescue bootstrap"))
    columns: list[dict[str, Float[Tensor, " sequence"]]] = []
    guards: list[dict[str, float]] = []
    for block, hook in enumerate(hooks):
        given = {
            "own": states[hook][rows, matched.source],
            "other": states[hook][matched.other, matched.source[matched.other]],
            "noise": noisy[hook][rows, matched.source],
        }
        logs, guard = _stage(mover, hook, states[hook][rows, matched.target], given, seed)
        if block == len(hooks) - 1 and float((logs["own"] - donor_log).abs().max()) > AGREEMENT:
            raise InstrumentError(
                f"the state moved after the last block of {run.name} does not give its own answer; the read is not the hook's"
            )
        columns.append(_columns(logs, base_log, donor_log, matched))
        guards.append(guard)
        if on_stage is not None:
            on_stage(block + 1, len(hooks))
    return _result(run, task, matched, columns, guards, weights, {"sequences": sequences, "seed": seed, "horizon": horizon}, device, watch)


def _observe(loaded: models.Loaded, tokens: Int[Tensor, "sequence index"], hooks: list[str]) -> tuple[dict[str, Tensor], Tensor]:
    """States at every hook and the logits, from one pass of the very batch that will be patched."""
    seen: dict[str, Tensor] = {}
    logits = cache.run(loaded, tokens, {name: cache.recorder(seen, name, lambda value: value.clone()) for name in hooks})
    cache.check_fired(loaded, hooks, seen)
    return seen, logits.cpu()


def _stage(
    mover: Mover, hook: str, base: Float[Tensor, "sequence width"], given: Mapping[str, Float[Tensor, "sequence width"]], seed: int
) -> tuple[dict[str, Float[Tensor, "sequence vocab"]], dict[str, float]]:
    """Log-probabilities with each donor moved, and what the guards saw.

    Raises:
        InstrumentError: if the move changed nothing, or moving an index's own state to it changed anything.
    """
    untouched, self_hook = mover(hook, Swap(), base, base)
    self_change = max(self_hook, float((untouched - mover.base_log).abs().max()))
    if self_change != 0.0:
        raise InstrumentError(f"{hook}: putting {mover.loaded.name}'s own state back changed the answer by {self_change}")
    logs = {name: mover(hook, Swap(), base, state)[0] for name, state in given.items()}
    at_logits = float((logs["own"] - mover.base_log).abs().max())
    if at_logits == 0.0:
        raise InstrumentError(f"{hook}: moving the matched state changed nothing; does the model know positions?")
    logs["norm"] = mover(hook, NormMatched(Swap(), seed), base, given["own"])[0]
    return logs, {"self_patch_max_change": self_change, "change_at_logits": at_logits}


def _columns(
    logs: Mapping[str, Float[Tensor, "sequence vocab"]],
    base_log: Float[Tensor, "sequence vocab"],
    donor_log: Float[Tensor, "sequence vocab"],
    matched: Matched,
) -> dict[str, Float[Tensor, " sequence"]]:
    """Every figure of `FIGURES` of each sequence; the rule's is NaN where it gives one of the two other answers."""
    answer, foreign = matched.answer, matched.answer[matched.other]

    def right(log: Tensor, target: Tensor) -> Tensor:
        return (log.argmax(-1) == target).double()

    def sure(log: Tensor, target: Tensor) -> Tensor:
        return log.gather(1, target[:, None])[:, 0].exp()

    told_apart = (matched.rule != answer) & (matched.rule != foreign)
    return {
        "accuracy_before": right(base_log, answer),
        "accuracy_donor": right(donor_log, answer),
        "accuracy": right(logs["own"], answer),
        "accuracy_redirect": right(logs["other"], foreign),
        "accuracy_redirect_own": right(logs["other"], answer),
        "accuracy_redirect_rule": torch.where(told_apart, right(logs["other"], matched.rule), torch.nan),
        "accuracy_random": right(logs["noise"], answer),
        "accuracy_norm": right(logs["norm"], answer),
        "p_before": sure(base_log, answer),
        "p": sure(logs["own"], answer),
        "p_redirect": sure(logs["other"], foreign),
    }


def _result(
    run: Run,
    task: RecurrenceTask,
    matched: Matched,
    columns: list[dict[str, Float[Tensor, " sequence"]]],
    guards: list[dict[str, float]],
    weights: Float[Tensor, "draws sequence"],
    config: dict[str, Any],
    device: str,
    watch: Stopwatch,
) -> Result:
    blocks, indices = list(range(len(columns))), list(range(config["horizon"], task.length - 1))
    grid: dict[str, tuple[tuple[str, ...], Any, str, str]] = {}
    for name, (units, what) in FIGURES.items():
        values = torch.stack([column[name] for column in columns], dim=1)
        low, high = stats.interval(stats.masked_means(weights, values))
        for suffix, figure in (("", values.nanmean(0)), ("_low", low), ("_high", high)):
            grid[f"{name}{suffix}"] = (("block",), figure.numpy(), units, what)
    for name in ("accuracy", "accuracy_before"):
        cells = [[float(column[name][matched.target == index].mean()) for index in indices] for column in columns]
        grid[f"{name}_by_index"] = (("block", "index"), np.array(cells), "fraction", f"{FIGURES[name][1]}, by that index")
    counts = [int((matched.target == index).sum()) for index in indices]
    grid["sequences_by_index"] = (
        ("index",),
        np.array(counts, dtype="int32"),
        "sequences",
        "matched sequences with that unsupervised index",
    )
    for name, what in (
        ("self_patch_max_change", "largest change by an index's own state"),
        ("change_at_logits", "largest change by the move"),
    ):
        grid[name] = (("block",), np.array([guard[name] for guard in guards]), "log-probability", what)
    name, horizon = str(run.name), int(config["horizon"])
    data = dataset({"block": blocks, "index": indices}, grid, run=name, horizon=horizon, chance=1.0 / task.modulus)
    summary: dict[str, Any] = {"run": name, "n_sequences": len(matched.tokens), "chance": 1.0 / task.modulus}
    summary["self_patch_max_change"] = max(guard["self_patch_max_change"] for guard in guards)
    constant = {"accuracy_before": (0, "accuracy_before"), "accuracy_donor": (0, "accuracy_donor")}
    staged = {
        f"{key}_{_word(block)}": (block, key) for key in FIGURES if key.startswith("accuracy") for block in blocks if key not in constant
    }
    for key, (block, variable) in (constant | staged).items():
        summary |= {f"{key}{end}": float(data[f"{variable}{end}"][block]) for end in ("", "_low", "_high")}
    manifest = provenance(
        config={"run": name, "weight_hash": run.manifest["weight_hash"], "task": task.config(), **config},
        device=device,
        dtype="float32 model, float64 figures",
        watch=watch,
        subject=name,
        weight_hash=run.manifest["weight_hash"],
        weight_processing="none",
        seeds={"sequences": config["seed"]},
    )
    return Result("rescue", data, ("block",), summary | {"finding": finding(summary, len(blocks))}, manifest)


def _word(block: int) -> str:
    return "embedding" if block == 0 else f"block{block}"


def finding(summary: Mapping[str, Any], blocks: int) -> str:
    """One plain sentence: what the matched state rescues, where, and whether another program's redirects."""
    inner = list(range(blocks - 1))  # after the last block the read is the donor's answer whatever it was
    first = next((block for block in inner if _rescues(summary, block)), None)
    lasting = first is not None and all(_rescues(summary, block) for block in inner if block > first)
    place = inner[-1] if first is None else max(first, min(2, inner[-1]))
    told = ", ".join(f"{summary[f'accuracy_{_word(block)}']:.2f} {_at(block)}" for block in inner[:3])
    verdict = "never rescues the answer"
    if first is not None:
        where = f"from {_at(first).removeprefix('at ')} on"
        verdict = f"rescues the answer {where if lasting else f'{_at(first)}, though not everywhere behind it'}"
    turned = summary[f"accuracy_redirect_{_word(place)}"]
    return (
        f"{summary['run']}: beyond the wall the next token is right {summary['accuracy_before']:.2f} of the time; the matched supervised "
        f"state of the same sequence {verdict} ({told}); another program's state makes it give that program's token in {turned:.2f} "
        f"({_at(place)}; chance {summary['chance']:.2f})."
    )


def _rescues(summary: Mapping[str, Any], block: int) -> bool:
    """Whether the matched state answers beyond what is right with nothing moved, the intervals of both apart."""
    key, before = f"accuracy_{_word(block)}", "accuracy_before"
    mine, theirs = ((summary[f"{name}_low"], summary[f"{name}_high"]) for name in (key, before))
    return beyond(summary[key], summary[before], difference(mine, theirs))


def _at(block: int) -> str:
    return "at the embedding" if block == 0 else f"after block {block}"
