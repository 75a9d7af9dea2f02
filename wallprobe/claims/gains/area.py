"""The ledger of the gains study: its figures against what its author's own published gains give, and against weights measured here.

Two subjects: `pythia`, recomputed from the published figures (`hooks.gains.published`), and `smollm2-135m`, measured with this package
on real weights of another family; `pythia-70m` and `pythia-12b` count where they were measured. Predicates stood before any value was
looked at.
"""

from collections.abc import Iterator

from wallprobe.claims.gains import published
from wallprobe.claims.ledger import rules
from wallprobe.claims.ledger.claim import Area, Claim
from wallprobe.claims.ledger.quantities import Quantity, summary
from wallprobe.claims.ledger.rules import Interval
from wallprobe.hooks.gains.published import EXTRAPOLATED
from wallprobe.hooks.gains.scaling import size_text

PYTHIA, SMOLLM2 = "pythia", "smollm2-135m"
FAMILY_NOTE = "another family (Llama); the study asks for this check itself"


def area() -> Area:
    """The claims, in reading order."""
    title = "Layer gains and the scaling law (the gains study)"
    return Area("gains", title, tuple(_claims()), (), read=published.measurements, from_results=True)


def _claims() -> Iterator[Claim]:
    yield from _attention()
    yield from _final()
    yield from _net()
    yield from _mlp()
    yield from _law()
    yield from _extrapolation()
    yield from _architecture()
    yield from _entropy()
    yield from _sheaf()
    yield from _beyond()
    yield from _unmeasured()


def figure(
    name: str,
    topic: str,
    statement: str,
    figure: float,
    digit: float,
    quantity: Quantity | None,
    units: str = "",
    *,
    pattern: str | None = None,
    note: str = "",
) -> Claim:
    """A published figure; `digit` is one unit of the last digit it prints, 0 for one given as about."""
    rule = "printed figure" if digit else "rough figure"
    band = rules.printed(figure, digit) if digit else rules.about(figure)
    belongs = None if pattern is None else f"gains.{pattern}"
    return Claim(f"gains.{name}", topic, "figure", statement, (figure, figure), quantity, rule, band, units, pattern=belongs, note=note)


def pattern(
    name: str,
    topic: str,
    statement: str,
    quantity: Quantity | None,
    accepted: Interval,
    units: str = "",
    *,
    requires: tuple[Quantity, Interval] | None = None,
    note: str = "",
) -> Claim:
    """An inequality, taken as the study words it."""
    return Claim(f"gains.{name}", topic, "pattern", statement, None, quantity, "literal inequality", accepted, units, requires, note=note)


def _of(key: str, instrument: str = "gains", subject: str = PYTHIA) -> Quantity:
    return summary(subject, instrument, key)


def _attention() -> Iterator[Claim]:
    topic = "Attention contracts"
    yield pattern(
        "attention.invariably",
        topic,
        "Attention is invariably contractive: its gain is below 1 in every layer of every model.",
        _of("attn_share_pooled"),
        Interval(low=100.0),
        "% of layers",
        note="6.9B layer 0 has 1.012, 12B layer 0 has 1.611",
    )
    for end, value in (("low", 97.0), ("high", 100.0)):
        which = "least" if end == "low" else "most"
        yield figure(
            f"attention.{end}",
            topic,
            f"Of a model's attention layers, {value:g} % have a gain below 1 at {which}.",
            value,
            1.0,
            _of(f"attn_share_{end}"),
            "% of layers",
            pattern="attention.invariably",
        )
    yield figure(
        "attention.pooled",
        topic,
        "Across models, 98.9 % of attention layers contract.",
        98.9,
        0.1,
        _of("attn_share_pooled"),
        "% of layers",
        pattern="attention.invariably",
    )
    yield pattern(
        "attention.stronger",
        topic,
        "As models scale, attention becomes more effective at building consensus: its loudest layer's gain falls with size.",
        _of("attn_trend"),
        rules.below(0.0),
        "rank correlation",
        note="the study names no measure; the loudest attention gain is the one read here",
    )


def _final() -> Iterator[Claim]:
    topic = "The final MLP expands"
    yield pattern(
        "final.expands", topic, "The last layer's MLP gain exceeds 1 in every model tested.", _of("final_low"), rules.above(1.0), "gain"
    )
    yield figure("final.70m", topic, "It is 1.5 in Pythia-70M, the least.", 1.5, 0.1, _of("final_low"), "gain", pattern="final.expands")
    yield figure("final.12b", topic, "It is 7.7 in Pythia-12B, the most.", 7.7, 0.1, _of("final_high"), "gain", pattern="final.expands")
    yield pattern(
        "final.loudest",
        topic,
        "The explosion is the last layer's: no other MLP of the model is louder.",
        _of("final_loudest_share"),
        Interval(low=100.0),
        "% of models",
        note="2.8B: layer 30 has 2.43, the last 2.10",
    )
    for name, value in (("70m", 1.5), ("12b", 7.7)):
        yield figure(
            f"final.{name}_here",
            topic,
            f"The last MLP's gain of Pythia-{name.upper()}, measured with this package.",
            value,
            0.1,
            summary(f"pythia-{name}", "gains", "final_mlp_gain"),
            "gain",
            pattern="final.expands",
        )


def _net() -> Iterator[Claim]:
    topic = "Net compression"
    yield pattern(
        "net.dominates",
        topic,
        "In every model most layers contract on net (attention gain x MLP gain below 1).",
        _of("net_share_low"),
        rules.above(50.0),
        "% of layers",
        note="the product is the gain of no map: both branches read the same residual",
    )
    for end, value in (("low", 94.0), ("high", 96.0)):
        yield figure(
            f"net.{end}",
            topic,
            f"The share of layers that contract on net is {value:g} % at {'least' if end == 'low' else 'most'}.",
            value,
            1.0,
            _of(f"net_share_{end}"),
            "% of layers",
            pattern="net.dominates",
            note="true of the 182 layers pooled (95.6 %), and model by model of 1.4B and 6.9B alone",
        )

    yield figure(
        "net.models",
        topic,
        "In each of the eight models 94 to 96 % of layers contract on net (to the digit printed).",
        8.0,
        1.0,
        _of("net_within"),
        "models",
        pattern="net.dominates",
        note="1.4B (23/24) and 6.9B (30/32); 70M, 160M, 410M and 2.8B have all, 12B 33/36, 1B 14/16",
    )
    yield pattern(
        "net.pooled",
        topic,
        "Read over all layers of all models together, 94 to 96 % contract on net.",
        _of("net_share_pooled"),
        Interval(low=93.5, high=96.5),
        "% of layers",
        note="174 of 182; the reading under which the published figure holds",
    )


def _mlp() -> Iterator[Claim]:
    topic = "MLP contraction and scale"
    yield pattern(
        "mlp.decreases",
        topic,
        "The share of contracting MLP layers falls with scale.",
        _of("mlp_trend"),
        rules.below(0.0),
        "rank correlation",
        requires=(_of("mlp_trend_p"), Interval(high=0.05)),
        note="over eight models, with p below 0.05",
    )
    for end, value in (("low", 75.0), ("high", 88.0)):
        yield figure(
            f"mlp.small_{end}",
            topic,
            f"In the small models (to 410M) {value:g} % of MLP layers contract at {'least' if end == 'low' else 'most'}.",
            value,
            1.0,
            _of(f"mlp_share_small_{end}"),
            "% of layers",
            pattern="mlp.decreases",
        )
    yield figure("mlp.12b", topic, "In Pythia-12B only 6 % do.", 6.0, 1.0, _of("mlp_share_12b"), "% of layers", pattern="mlp.decreases")
    yield pattern(
        "mlp.small_above",
        topic,
        "No larger model has a greater share of contracting MLPs than the small ones.",
        _of("mlp_share_large_high") - _of("mlp_share_small_high"),
        Interval(high=0.0),
        "percentage points",
        note="1.4B has 92 %",
    )


def _law() -> Iterator[Claim]:
    topic = "The scaling law"
    law = "scaling"
    for name, key, value, digit, words in (
        ("coefficient", "coefficient", 0.013, 0.001, "The coefficient is 0.013."),
        ("alpha", "alpha", 0.265, 0.001, "The exponent is 0.265."),
        ("alpha_rounded", "alpha", 0.27, 0.01, "The exponent is about 0.27."),
        ("alpha_se", "alpha_se", 0.079, 0.001, "Its standard error is 0.079."),
        ("r2", "r2", 0.65, 0.01, "R² is 0.65."),
        ("p", "p", 0.015, 0.001, "p is 0.015."),
    ):
        yield figure(f"law.{name}", topic, words, value, digit, _of(key, law), pattern="law.significant")
    yield pattern("law.significant", topic, "The exponent is significant: p below 0.05.", _of("p", law), rules.below(0.05), "p")
    yield pattern(
        "law.robust",
        topic,
        "The law is robust: p stays below 0.05 whichever model is left out.",
        _of("loo_p_high", law),
        rules.below(0.05),
        "largest p",
        note="robust in the study's words; without 70M p is 0.065, without 12B 0.072, without the two largest 0.32",
    )
    yield pattern(
        "law.sublinear",
        topic,
        "Gain grows sublinearly with parameters: the exponent is below 1.",
        _of("alpha", law),
        rules.below(1.0),
        "exponent",
    )
    yield pattern(
        "law.parameters",
        topic,
        "Parameters are what the gain follows: no other measure of size fits better.",
        _of("r2_best_other", law) - _of("r2", law),
        Interval(high=0.0),
        "R²",
        note="read into the published law; width (d_model) fits better",
    )


def _extrapolation() -> Iterator[Claim]:
    topic = "Extrapolation"
    for size, value in EXTRAPOLATED.items():
        label = size_text(size)
        measured = " (measured)" if size < 2e10 else ""
        quantity = _of("final_high") if measured else _of(f"extrapolated_{label}", "scaling")
        yield figure(
            f"ahead.{label.lower()}",
            topic,
            f"At {label} parameters the gain is {'' if measured else 'about '}{value:g}{measured}.",
            value,
            0.1 if measured else 0.0,
            quantity,
            "gain",
            note=""
            if measured
            else "by the published formula; the published figure is nearer to the law drawn through the 12B model, which is one point",
        )


def _architecture() -> Iterator[Claim]:
    topic = "Three regimes"
    yield figure(
        "regimes.labels",
        topic,
        "FUNNEL to 410M, HOUR-GLASS from 1B to 2.8B, VASE from 6.9B: eight models.",
        8.0,
        1.0,
        _of("regimes_matched"),
        "models",
        note="the study gives labels and no rule; the rule here was fitted to these eight labels, so it can only agree",
    )
    yield figure("models.count", topic, "Eight Pythia models were measured.", 8.0, 1.0, _of("n_models"), "models")
    yield figure(
        "models.smallest", topic, "The smallest has 70 million parameters.", 70.0, 1.0, _of("size_low"), "million", note="70.4 million"
    )
    yield figure("models.largest", topic, "The largest has 12 billion.", 12.0, 1.0, _of("size_high"), "billion", note="11.85 billion")
    yield figure(
        "regimes.layers", topic, "In Pythia-12B 35 layers come before the last.", 35.0, 1.0, _of("layers_before_last_12b"), "layers"
    )
    yield pattern(
        "regimes.plateau",
        topic,
        "Layers 7 to 30 of the large models are a plateau: their MLP gains spread less than those of the other layers.",
        _of("plateau_spread_ratio"),
        rules.below(1.0),
        "spread over spread",
        note="largest over smallest gain, inside over outside, of 6.9B and 12B, the greater of the two",
    )
    yield pattern(
        "regimes.vocabulary", topic, "The vocabulary has more than 50,000 entries.", _of("vocabulary_low"), rules.above(50_000.0), "entries"
    )
    yield figure(
        "prompts.single",
        topic,
        "All measurements use a single prompt.",
        1.0,
        1.0,
        _of("n_prompts"),
        "prompts",
        note="the published gains are means over four prompts (the authors' code)",
    )


def _entropy() -> Iterator[Claim]:
    topic = "Entropy flow"
    flow = {key: summary(SMOLLM2, "flow", f"lens_entropy_{key}") for key in ("first", "min", "last")}
    yield pattern(
        "entropy.falls",
        topic,
        "From the first layer to the bottleneck the entropy of the prediction falls.",
        flow["first"] - flow["min"],
        rules.above(0.0),
        "nats",
        note=f"logit lens, last token, no sinks; {FAMILY_NOTE}",
    )
    yield pattern(
        "entropy.rises",
        topic,
        "From the bottleneck to the last layer it rises.",
        flow["last"] - flow["min"],
        rules.above(0.0),
        "nats",
        note=f"logit lens, last token, no sinks; {FAMILY_NOTE}",
    )
    yield pattern(
        "entropy.bottleneck",
        topic,
        "Entropy is least at the bottleneck L*, where net compression is greatest (within one layer).",
        summary(SMOLLM2, "flow", "bottleneck_distance"),
        Interval(high=1.0),
        "layers apart",
        note=FAMILY_NOTE,
    )


def _sheaf() -> Iterator[Claim]:
    topic = "Sheaf"
    yield pattern(
        "sheaf.contractive",
        topic,
        "Restriction maps sqrt(A_ij) W_V are predominantly contractive: the mean one's largest singular value is below 1 in most heads.",
        summary(SMOLLM2, "maps", "contracting_share"),
        rules.above(0.5),
        "share of heads",
        note="sqrt(A_ij) itself never exceeds 1, so a ratio to W_V says nothing; here sqrt(A) averaged over edges times sigma_max(W_V)",
    )
    yield pattern(
        "sheaf.consensus",
        topic,
        "Each layer enforces more consistency: the normalised Dirichlet energy falls from the first layer to the last.",
        summary(SMOLLM2, "maps", "energy_last") - summary(SMOLLM2, "maps", "energy_first"),
        rules.below(0.0),
        "energy",
        note=FAMILY_NOTE,
    )


def _beyond() -> Iterator[Claim]:
    topic = "Beyond Pythia (SmolLM2-135M)"
    yield pattern(
        "beyond.attention",
        topic,
        "Attention's gain is below 1 in at least 97 % of layers.",
        summary(SMOLLM2, "gains", "attn_share"),
        Interval(low=97.0),
        "% of layers",
        note=FAMILY_NOTE,
    )
    for name, key, words in (
        ("final", "final_mlp_gain", "The last MLP's gain exceeds 1."),
        ("final_no_sink", "final_mlp_gain_no_sink", "It does so without the attention-sink token."),
    ):
        yield pattern(f"beyond.{name}", topic, words, summary(SMOLLM2, "gains", key), rules.above(1.0), "gain", note=FAMILY_NOTE)
    yield pattern(
        "beyond.net",
        topic,
        "Most layers contract on net.",
        summary(SMOLLM2, "gains", "net_share"),
        rules.above(50.0),
        "% of layers",
        note=FAMILY_NOTE,
    )
    yield pattern(
        "beyond.law",
        topic,
        "Its last MLP's gain lies within the law's 95 % interval for a new model of its size: gain over the nearer bound.",
        summary(SMOLLM2, "gains", "law_excess"),
        Interval(high=1.0),
        "times the bound",
        note=FAMILY_NOTE,
    )


def _unmeasured() -> Iterator[Claim]:
    topic = "What nothing here measures"
    for name, words, why in (
        (
            "work",
            "The work of deciding grows with the harmonic subspace's stability to the power 0.27.",
            "the study defines neither quantity",
        ),
        (
            "critical",
            "Beyond a critical size efficiency falls.",
            "of two pure power laws the ratio is monotone, so there is no critical size; a finite one needs losses of five sizes or more "
            "(wallprobe scaling --efficiency)",
        ),
        ("instability", "Gains of 30 to 50 make training and inference unstable.", "no model with such a law's gain is at hand"),
        ("overconfident", "High gain makes predictions overconfident and less calibrated.", "needs models of several sizes"),
        ("returns", "Perplexity improves sublinearly with parameters.", "the study publishes no losses"),
        (
            "training",
            "The wider compression and expansion lie apart, the worse conditioned the gradient.",
            "needs models of several sizes",
        ),
        ("brittle", "High-gain last layers amplify small perturbations.", "needs models of several sizes"),
        ("cohomology", "H^1 of the attention sheaf is not zero and obstructs prediction.", "the study gives no complex to compute it from"),
        ("inertia", "Larger models require larger explosions rather than learning them.", "observational, as the study says"),
    ):
        yield pattern(f"open.{name}", topic, words, None, rules.above(0.0), note=why)
