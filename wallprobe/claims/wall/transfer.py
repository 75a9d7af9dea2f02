"""Claims of what can be carried: the answer and the rule between networks, raw and aligned, and a supervised state beyond the wall.

Predicates were committed before any of these figures was measured; they are those of `rules`, by kind.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from wallprobe.claims.ledger import rules
from wallprobe.claims.ledger.claim import Claim
from wallprobe.claims.ledger.measurements import OTHER, READOUT
from wallprobe.claims.ledger.quantities import Quantity, summary
from wallprobe.claims.ledger.wording import apart, figure, pattern

# donor and receiver of the readouts; each within a seed and, where there is another, from seed to seed
PAIRS = (("p5", "c0"), ("c1", "c0"), ("c0", "p5"), ("p1", "c0"))
CLAIMED = (("p5", "c0"), ("c1", "c0"), ("p1", "c0"))  # raw and from one initialisation, these are the interchange's own claims
BASES = ("none", "procrustes", "ridge")
RAW = "none"
WORDS: Mapping[str, str] = MappingProxyType(
    {"none": "as it is", "procrustes": "rotated into the other's basis", "ridge": "carried over by a fitted linear map"}
)
STARTS: Mapping[str, str] = MappingProxyType({"same": "from the same initialisation", "other": "from another initialisation"})
# the accuracy that Misra's code gives at a state-matched unsupervised index
RESCUED: Mapping[str, float] = MappingProxyType({"none": 0.19, "embedding": 0.35, "block1": 0.94, "block2": 1.00})
STEPS: Mapping[str, str] = MappingProxyType(
    {
        "none": "without help",
        "embedding": "with the donor's embedding",
        "block1": "with its state after block 1",
        "block2": "with its state after block 2",
    }
)
CHANCE = 1 / 17


def claims() -> Iterator[Claim]:
    """Every claim of this file, in reading order."""
    yield from _transfer()
    yield from _rescue()


def _gain(src: str, dst: str, name: str, align: str, start: str) -> Quantity:
    """The largest excess of an answer over chance, no patch and a random donor, from the readout's summary."""
    instrument = f"{READOUT}{dst}" + (OTHER if start == "other" else "")
    return summary(src, instrument, f"gain_{name}_{align}_{start}")


def _transfer() -> Iterator[Claim]:
    """The study's two statements are of raw states; whether they hold of aligned ones and from another initialisation is asked here."""
    topic = "Transfer, raw and aligned"
    for start, origin in STARTS.items():
        for align in BASES:
            for src, dst in PAIRS:
                if (start, align) == ("same", RAW) and (src, dst) in CLAIMED:
                    continue
                name = f"transfer.{src}_{dst}.{start}.{'raw' if align == RAW else align}"
                note = "" if (start, align) == ("same", RAW) else "asked here: the study swaps raw states and names no initialisation"
                yield pattern(
                    f"{name}.no_rule",
                    topic,
                    f"No single residual state of {src}, {origin}, {WORDS[align]}, brings its rule to {dst}.",
                    _gain(src, dst, "rule", align, start),
                    "crossing",
                    rules.below(rules.CROSSING),
                    "probability",
                    note=note,
                )
                yield pattern(
                    f"{name}.answer",
                    topic,
                    f"Deep in the network, the prediction of {src}, {origin}, {WORDS[align]}, crosses into {dst}.",
                    _gain(src, dst, "import", align, start),
                    "crossing",
                    rules.above(rules.CROSSING),
                    "probability",
                    note=note,
                )


def _moved(step: str) -> Quantity:
    return summary("c0", "rescue", "accuracy_before" if step == "none" else f"accuracy_{step}")


def _rescue() -> Iterator[Claim]:
    topic = "Writer-state rescue"
    note = "figures of Misra's code; an index is matched if it holds the same token, so that the same one follows"
    for step, words in STEPS.items():
        yield figure(
            f"rescue.{step}",
            topic,
            f"Accuracy at a state-matched unsupervised index {words}.",
            RESCUED[step],
            _moved(step),
            "fraction",
            "accuracy",
            pattern=None if step == "none" else "rescue.helps",
            note=note,
        )
    yield apart(
        "rescue.helps",
        topic,
        "A supervised state, moved after block 2 to where the same answer is due, gives it more often than what stands there.",
        _moved("block2"),
        _moved("none"),
        "accuracy",
        published=RESCUED["block2"] - RESCUED["none"],
    )
    yield pattern(
        "rescue.redirects",
        topic,
        "Another program's state, moved there after block 2, makes the network give that program's next token.",
        summary("c0", "rescue", "accuracy_redirect_block2"),
        "order",
        rules.above(CHANCE + rules.FRACTION),
        "accuracy",
    )
    yield pattern(
        "rescue.no_rule",
        topic,
        "It does not make the network apply that program's rule to the token that stands there.",
        summary("c0", "rescue", "accuracy_redirect_rule_block2"),
        "order",
        rules.below(CHANCE + rules.FRACTION),
        "accuracy",
    )
