"""The words of the pages, explained: by heading, one to three plain sentences each, with the formula where there is one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """One entry of the glossary.

    Attributes:
        name: as its heading reads.
        meaning: in plain words.
        formula: empty for none.
        also: other spellings in captions and table heads that mean it, matched as whole words whatever the case.
        keys: summary keys and columns that mean it; `_low` and `_high` and the like are taken off before they are looked up.
    """

    name: str
    meaning: str
    formula: str = ""
    also: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


WALL = (
    Term(
        "wall",
        "The border between positions that cross-entropy reached in training and those it did not. Before it a run is near the exact "
        "answer; beyond it, without a further signal, its error jumps.",
        also=("walls",),
    ),
    Term(
        "position and index",
        "Index i is the place of a token. Position t is the prediction of token t from the tokens before it, read at index t − 1.",
        also=("patched index", "patched position"),
        keys=("position", "index"),
    ),
    Term(
        "supervised position",
        "A position whose next token entered the training loss: 1 to K, where K is the horizon. The others get a condition's signal, "
        "or nothing.",
        also=("supervised positions", "unsupervised positions", "unsupervised", "supervised"),
        keys=("horizon",),
    ),
    Term(
        "program and noise",
        "Half of the sequences follow a rule (a program, such as x → a x + b mod 17 with unknown a and b); the others are uniform noise.",
        also=("program sequences", "noise sequences", "programs"),
    ),
    Term(
        "condition",
        "What a run was trained on beyond the wall: a signal, the route by which its gradient enters, positions, a schedule, a weight. "
        "c0 has none.",
        keys=("condition",),
    ),
    Term(
        "exact answer",
        "The Bayesian prediction from the prefix, in closed form: the mixture of every rule that still fits and of noise, each by its "
        "posterior weight.",
        "P(x_t | prefix) = w P_program + (1 − w) / p",
        also=("exact predictive", "exact posterior"),
        keys=("entropy_exact",),
    ),
    Term(
        "class posterior",
        "w, the exact probability that a sequence is a program given its prefix.",
        also=("class-posterior error",),
        keys=("class_posterior_mae", "class_posterior_mae_program"),
    ),
    Term(
        "entropy error",
        "How far the entropy of a run's prediction is from the exact one's, in bits. Zero means as sure as it should be, not right.",
        "mean |H(P) − H(Q)|",
        also=("MAE", "mean entropy error"),
        keys=("mae", "trained_mae", "untrained_mae", "entropy_mae", "entropy_mae_trained", "entropy_mae_unsupervised"),
    ),
    Term(
        "wall ratio",
        "Entropy error beyond the wall over that before it. Above 3 the wall counts as kept.",
        "MAE(t > K) / MAE(t ≤ K)",
        keys=("wall_ratio",),
    ),
    Term(
        "wall sharpness",
        "The jump in entropy error from the last supervised position to the next.",
        "MAE(K + 1) − MAE(K)",
        keys=("wall_sharpness",),
    ),
    Term(
        "Bayes-best token",
        "The token to which the exact answer gives most. The mass a run puts on it shows whether it is right, which agreement in entropy "
        "does not.",
        also=("mass due", "mass on the right token"),
        keys=("best_mass", "best_posterior", "bayes_best_mass", "bayes_best_posterior", "best_log_mass", "best_mass_geomean"),
    ),
    Term(
        "KL divergence",
        "What it costs, in nats or bits per token, to predict by Q where P is true; 0 only where they agree.",
        "KL(P ‖ Q) = Σ P ln(P / Q)",
        also=("KL", "KL from the exact predictive"),
        keys=("kl", "kl_nats", "kl_best_bits", "kl_at_one_bits", "kl_uniform_bits", "kl_single_t_bits"),
    ),
    Term(
        "calibration error",
        "Predictions are put into bins by confidence; the error is the mean distance of confidence from what it is held to, bins weighted "
        "by their share.",
        "ECE = Σ share · |confidence − reference|",
        also=("calibration errors", "reliability", "reliability diagram"),
        keys=("ece_confidence", "ece_exact", "ece_drawn"),
    ),
    Term(
        "temperature",
        "A divisor of the logits before the softmax. If a run's error were only in how sure it is, the best one would take it away.",
        "Q_T = softmax(logits / T)",
        also=("best temperature",),
        keys=("t_star", "t_star_unsupervised", "t_star_trained"),
    ),
)

INTERCHANGE = (
    Term(
        "residual stream",
        "The vector that each token carries through the network. Attention and MLP read it, and add what they write.",
        "x_{l+1} = x_l + A_l + M_l",
        also=("hidden state",),
    ),
    Term(
        "site",
        "Where in a block a vector is taken or put: the residual stream before the block (resid_pre), after attention (resid_mid), after "
        "the block (resid_post), or what a part writes (attn_out, mlp_out, z).",
        also=("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"),
        keys=("site", "sites"),
    ),
    Term(
        "interchange",
        "Put one network's vector into another at the same layer and index, and read which answer comes out. The network that gives is "
        "the donor (src), the one that gets is the receiver (dst).",
        also=("donor", "receiver", "patched", "patch"),
        keys=("src", "dst"),
    ),
    Term(
        "p_own",
        "After the patch, the probability of the receiver's own answer: its own rule on its own last token.",
        "P(a_B x_B + b_B)",
        also=("own answer",),
        keys=("p_own", "own"),
    ),
    Term(
        "p_rule",
        "The probability of the donor's rule used on the receiver's last token: the sign that a rule, not an answer, was carried over.",
        "P(a_A x_B + b_A)",
        also=("donor's rule",),
        keys=("p_rule", "rule", "max_p_rule"),
    ),
    Term(
        "p_import",
        "The probability of the very token that the donor was about to say: its answer, carried over whole.",
        "P(a_A x_A + b_A)",
        also=("imported prediction", "imported answer"),
        keys=("p_import", "import", "max_p_import"),
    ),
    Term(
        "noise floor",
        "What a guess gets: one over the number of tokens. A probability that does not exceed it is none.",
        "1 / p",
        also=("chance",),
        keys=("noise_floor", "chance"),
    ),
    Term(
        "self-patch",
        "A network's own vector put where it was. It must change nothing, to the bit; it is run beside every interchange.",
        also=("self-patches",),
        keys=("self_patch_max_change",),
    ),
    Term(
        "control",
        "The same treatment with the cause taken out: a random donor, another pair's donor, noise of the same norm, shuffled labels, "
        "random directions. What it also does is not the effect.",
        also=("controls", "random donor", "mismatched donor", "norm-matched noise", "random spans", "random span"),
    ),
    Term(
        "alignment of bases",
        "Two networks trained apart need not use the same axes. Procrustes fits a rotation between their states, ridge any linear map, on "
        "other sequences than are patched.",
        also=("Procrustes", "ridge", "change of basis"),
        keys=("align",),
    ),
    Term(
        "q-value",
        "A p-value corrected for how many cells of a sweep were tested (Benjamini-Hochberg): of the cells below 0.05, at most 5 % are "
        "expected to be false.",
        also=("q-values",),
    ),
    Term(
        "share restored",
        "On a language model: how far a patch moves the difference of two answers' logits from that of the corrupt prompt to that of the "
        "clean one. 0 is nothing, 1 all of it.",
        "(d_patched − d_corrupt) / (d_clean − d_corrupt)",
        also=("recovered", "logit difference"),
        keys=("restored", "recovered"),
    ),
    Term(
        "rescue",
        "A state from before the wall put beyond it, where the same answer is due. It shows whether what follows still can read it.",
        also=("writer-state rescue",),
    ),
    Term(
        "ablation",
        "A part of a state replaced by its mean (or zero, or another sequence's), to see what the answer loses.",
        also=("ablated", "mean-ablated"),
    ),
    Term(
        "linear probe",
        "A linear classifier fitted on states, scored on other sequences. It finds what can be read, not what the network uses.",
        also=("probe", "probes", "linear probes"),
    ),
    Term(
        "selectivity",
        "A probe's accuracy minus that of the same probe fitted on shuffled labels.",
        keys=("selectivity",),
    ),
)

GAINS = (
    Term(
        "gain",
        "How loud what a sub-layer writes is against what it is held to. Every definition (sublayer, sublayer_unit, update_ratio, "
        "resid_ratio, jacobian, spectral) holds it to something else, and none but the Jacobian's is a property of the function alone.",
        "G = mean ‖out‖ / mean ‖reference‖",
        also=("gains", "MLP gain", "attention gain"),
        keys=("attn_gain", "mlp_gain", "final_mlp_gain", "max_mlp_gain", "gain"),
    ),
    Term(
        "sublayer gain",
        "What the module writes over what it is given, the norm's scale included. Moving that scale into the weights behind it changes "
        "this gain and nothing that the model says.",
        "‖out‖ / ‖LN(x)‖",
        also=("definition sublayer", "sublayer"),
        keys=("definition",),
    ),
    Term(
        "sublayer_unit gain",
        "The same against a normalised vector without scale: what sublayer gives once norms are folded. For comparing families.",
        "‖out‖ / √d",
        also=("sublayer_unit",),
    ),
    Term("update_ratio", "What a branch writes over the residual it reads: how much of the stream it changes.", "‖out‖ / ‖x‖"),
    Term("resid_ratio", "The residual after a branch over the residual before it.", "‖x + out‖ / ‖x‖"),
    Term(
        "Jacobian gain",
        "The root mean square by which a small random change of the residual is stretched, the norm included: the gain of the map itself.",
        "√(E‖J v‖² / E‖v‖²)",
        also=("jacobian",),
    ),
    Term(
        "spectral gain",
        "The largest stretch that the weights alone allow, whatever the tokens.",
        "σ(W_O W_V); σ(W_out) σ(W_in)",
        also=("spectral",),
    ),
    Term(
        "contraction",
        "A gain below 1: the branch writes less than it is held to. Always given as k of L layers.",
        "G < 1",
        also=("contracts", "contracting"),
        keys=("attn_contracting", "mlp_contracting", "net_contracting", "net_block_contracting", "net_sum_contracting"),
    ),
    Term(
        "net",
        "Both branches of a block together: net_product multiplies their gains (the gains study's, the gain of no map), net_sum takes "
        "the norm of what both write, net_block the residual after the block over that before.",
        "G_attn · G_mlp;  ‖A + M‖ / ‖LN(x)‖;  ‖x + A + M‖ / ‖x‖",
        also=("net_product", "net_block", "net_sum"),
        keys=("net_product", "net_block", "net_sum"),
    ),
    Term(
        "sink",
        "A token, most often the first, whose residual is more than 10 times the prompt's median at some layer. It takes attention that "
        "has nowhere to go, and can carry a layer's whole gain.",
        "max_l ‖x_l,t‖ / median > 10",
        also=("sinks", "sink tokens", "sink token", "attention sink", "attention-sink"),
        keys=("n_sinks", "sink_positions", "sinks", "final_mlp_sink_share", "attn_sink_share", "mlp_sink_share"),
    ),
    Term(
        "without sinks",
        "The same figure with the sink tokens left out of both means; always printed beside that of all tokens.",
        also=("no_sink", "no sinks", "without sink tokens"),
        keys=("final_mlp_gain_no_sink", "final_mlp_gain_no_first"),
    ),
    Term(
        "L*",
        "The bottleneck: the layer where the stream is narrowest. Five rules name it (least net gain, least attention gain, least lens "
        "entropy, least effective rank, largest trace), and they disagree.",
        also=("bottleneck",),
        keys=(
            "l_star",
            "l_star_argmin_net",
            "l_star_argmin_attn",
            "l_star_argmin_lens_entropy",
            "l_star_argmin_erank",
            "l_star_trace_peak",
        ),
    ),
    Term(
        "regime",
        "The shape of the MLP's gains over depth by early, middle and last: vase, hour-glass, funnel or unclassified. Its thresholds were "
        "fitted on eight models, for the sublayer gain alone.",
        keys=("regime",),
    ),
    Term(
        "scaling law",
        "A straight line through log gain over log size. Eight points carry it, so its interval, the fit without each model and the "
        "prediction interval stand beside.",
        "log₁₀ G = α log₁₀ N + β",
        also=("exponent", "alpha"),
        keys=("alpha", "alpha_se", "coefficient", "intercept"),
    ),
    Term(
        "prediction interval",
        "Where one new model of that size would lie with 95 % probability if the law held; wider than the interval of the line.",
        also=("95 % of a new model",),
    ),
    Term(
        "leave-one-out",
        "The fit again without each model in turn.",
        also=("model left out",),
        keys=("loo_alpha", "loo_p", "loo_significant"),
    ),
    Term("Theil-Sen", "The median of the slopes of all pairs: a line that a few outliers cannot move.", keys=("theil_sen",)),
)

FLOW = (
    Term(
        "logit lens",
        "The residual after each block read as if it were the last: through the final norm and the unembedding. The last row must be the "
        "model's own logits.",
        "softmax(W_U · Norm(x_l))",
        also=("lens", "lens entropy"),
        keys=("lens_entropy", "lens_entropy_first", "lens_entropy_min", "lens_entropy_last", "lens_error", "lens_nll"),
    ),
    Term(
        "loss",
        "Mean negative log-probability of the token that comes, in nats.",
        "NLL = −ln Q(x_t)",
        also=("NLL",),
        keys=("nll", "nll_base"),
    ),
    Term(
        "eta",
        "Nats of prediction over a uniform guess for each unit of the last MLP's gain.",
        "η = (ln V − NLL) / G_mlp(L − 1)",
        keys=("eta", "eta_no_sink", "eta_alpha"),
    ),
    Term("eta_ppl", "A unigram model's perplexity over the model's, per unit of the last MLP's gain.", keys=("eta_ppl", "ppl_unigram")),
    Term("critical size", "N*: beyond it a unit of gain buys fewer nats. Two pure power laws have none.", keys=("n_star",)),
    Term(
        "effective rank",
        "How many directions the states spread over: the exponential of the entropy of their squared singular values.",
        "exp H(σ² / Σσ²)",
        also=("erank",),
        keys=("erank", "erank_min_no_sink", "erank_no_sink"),
    ),
    Term(
        "participation ratio",
        "Another count of directions, less moved by small ones.",
        "(Σσ²)² / Σσ⁴",
        keys=("participation", "participation_no_sink"),
    ),
    Term(
        "restriction map",
        "What attention carries from one token to another, as a sheaf's map: the value matrix by the root of the attention weight. The "
        "root alone is at most 1, so only the absolute size says whether anything shrinks.",
        "ρ = √A · W_V",
        also=("restriction maps", "mean √A"),
        keys=("mean_sqrt_a", "map_v", "map_ov", "contracting_share", "sigma_v", "sigma_ov"),
    ),
    Term(
        "Dirichlet energy",
        "How much the tokens that attend to each other differ under the value matrix; over their own size, 0 is consensus.",
        "Σ A ‖W_V (x_i − x_j)‖² / Σ ‖W_V x_i‖²",
        also=("consensus",),
        keys=("energy", "energy_first", "energy_last"),
    ),
    Term(
        "graph gap",
        "The second smallest eigenvalue of attention's Laplacian: 0 where the tokens fall into parts that do not attend to each other.",
        also=("trace", "harmonic share"),
        keys=("gap", "trace", "harmonic_share"),
    ),
    Term(
        "scaled sub-layer",
        "A sub-layer's output multiplied by 0, 0.5 or 2, on all tokens, on sinks alone or on the others; random layers beside. Times 1 "
        "must change nothing.",
        "ΔNLL = NLL(scaled) − NLL",
        also=("ΔNLL", "change in loss"),
        keys=("delta_nll", "worst_delta_nll", "identity_change", "worst_layer"),
    ),
)

AUDIT = (
    Term(
        "credit",
        "The vector that a training method uses in the place of the loss's gradient at a hidden state. For backpropagation it is the "
        "gradient itself.",
        "a_l",
    ),
    Term(
        "reference gradient",
        "The true gradient of the loss at a hidden state, summed over a fixed number of samples so that it does not depend on the batch.",
        "g_l = ∂(Σ loss) / ∂h_l",
        also=("|g_L|",),
        keys=("g_norm", "g_ratio"),
    ),
    Term("|h_L|", "Mean norm of the last hidden state.", also=("state norms", "state's norm"), keys=("h_norm", "h_ratio")),
    Term(
        "clamped cosine",
        "The cosine of credit and reference as it is usually computed: a norm below eps = 1e-8 is taken to be eps. Where gradients are "
        "shorter, the figure is the clamp's.",
        "Γ = a · g / (max(‖a‖, eps) max(‖g‖, eps))",
        also=("clamped", "Γ clamped", "clamp", "eps"),
        keys=("gamma_clamped", "below_eps"),
    ),
    Term(
        "exact cosine",
        "The same in double precision, each vector first divided by its largest entry: no clamp, and any length will do.",
        also=("Γ exact", "clamp-free"),
        keys=("gamma_exact", "sign_flip"),
    ),
    Term(
        "elasticity",
        "How the reference falls as the state grows, on log axes. Near −1 with a steady product of the two norms, it only changed units.",
        "d log ‖g_L‖ / d log ‖h_L‖",
        also=("× |h||g|", "slope −1"),
        keys=("elasticity", "elasticity_ratio"),
    ),
    Term(
        "verdict",
        "Of an audit: degenerate, inflated, no deep credit or sound, the worst that holds. Of a claim: reproduced, not reproduced or not "
        "measured.",
        also=("verdicts",),
        keys=("verdict",),
    ),
    Term(
        "frozen baseline",
        "The same net with its blocks left as drawn, only the ends trained. A method that does no better trains nothing deep.",
        also=("− frozen", "frozen blocks"),
        keys=("accuracy_minus_frozen",),
    ),
    Term(
        "random feedback",
        "Fresh random feedback matrices, not those the method trains with: the cosine that no learning gives.",
        also=("null",),
        keys=("null_low", "null_high"),
    ),
)

FIGURES = (
    Term(
        "95 % interval",
        "From the 2.5th to the 97.5th percentile of 1,000 bootstrap resamples of what was measured (sequences, pairs or prompts), unless a "
        "caption says Student's t, which is over seeds or models. It says nothing of other seeds or prompts sets.",
        also=("95 % bootstrap interval", "bootstrap interval", "bootstrap", "whiskers", "95 % t interval"),
        keys=("bootstrap_low", "bootstrap_high", "ci_low", "ci_high"),
    ),
    Term("R²", "Share of the variance that a fit accounts for; of a fit worse than the mean it is below 0.", keys=("r2",)),
    Term("p-value", "How often chance alone would give a slope at least as steep.", keys=("p", "loo_p_high")),
    Term(
        "pattern and figure",
        "A pattern is an inequality that a text claims, a figure the number behind it. The pattern may hold where the figure differs.",
        also=("patterns", "figures agree"),
        keys=("pattern_reproduced", "figure_reproduced", "figures_off_pattern_held"),
    ),
    Term(
        "unsettled",
        "The interval of a measured value does not lie on one side of what would reproduce the claim.",
        keys=("unsettled", "settled"),
    ),
    Term(
        "manifest",
        "What made a result: command, resolved options, versions, commit, hashes of weights and data, seeds, device, time and memory.",
    ),
)

HEADINGS: tuple[tuple[str, tuple[Term, ...]], ...] = (
    ("The wall", WALL),
    ("Interchange and reading", INTERCHANGE),
    ("Gains", GAINS),
    ("Inside the stream", FLOW),
    ("The audit", AUDIT),
    ("Figures and claims", FIGURES),
)
