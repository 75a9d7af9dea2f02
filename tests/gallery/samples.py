"""Results of every kind by numpy alone, after the instruments' schemas, with hostile strings wherever a string can go."""

from pathlib import Path
from typing import Any

import numpy as np

from wallprobe.store.results import Result, dataset

HOSTILE = [
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=2</script>",
    "<s>",
    "<img src=x onerror=window.pwned=3>",
    "שלום\u202etxet",
    "🧪🔬",
    "&lt;b&gt;",
    "\u2028'\"`${window.pwned=4}",
]
ATTACK = HOSTILE[1] + HOSTILE[3]
LONG = "<b>" + "x" * 10_000
CREATED = "2026-01-02T03:04:05+00:00"


def manifest(subject: str, **more: Any) -> dict[str, Any]:
    """A manifest as the instruments write it."""
    return {
        "command": f"wallprobe interchange --src p5 --dst {subject}",
        "config": {"subject": subject, **more},
        "versions": {"python": "3.11"},
        "source": {"commit": "abc", "dirty": False},
        "device": "cpu",
        "dtype": "float32",
        "created": CREATED,
        "subject": subject,
        "weight_processing": "none",
        **more,
    }


def bounds(variables: dict[str, Any], names: list[str], half: float) -> None:
    """Add `_low` and `_high` beside each variable."""
    for name in names:
        dims, values, units, long_name = variables[name]
        variables[f"{name}_low"] = (dims, values - half, units, long_name)
        variables[f"{name}_high"] = (dims, values + half, units, long_name)


def interchange(
    subject: str = "p5 to c0", *, layers: int = 6, indices: tuple[int, ...] = (3, 4), finding: str | None = None, lift: float = 0.0
) -> Result:
    """An interchange whose import rises with depth at the last index."""
    rng = np.random.default_rng(0)
    depth = np.linspace(0, 1, layers)[:, None]
    last = (np.array(indices) == max(indices))[None, :]
    variables: dict[str, Any] = {
        "p_import": (("layer", "index"), 0.0588 + (0.33 - lift) * depth * last, "probability", "imported prediction"),
        "p_rule": (("layer", "index"), np.full((layers, len(indices)), 0.0605), "probability", "donor's rule"),
        "p_own": (("layer", "index"), 0.5 - 0.4 * depth * last, "probability", "own answer"),
    }
    bounds(variables, ["p_import", "p_rule", "p_own"], 0.012)
    shape = (layers, len(indices))
    for key, base in (("import", 0.06), ("rule", 0.059), ("own", 0.53)):
        variables[f"base_p_{key}"] = (("layer", "index"), np.full(shape, base), "probability", "no patch")
        for arm in ("random", "mismatched", "norm"):
            variables[f"p_{key}_{arm}"] = (("layer", "index"), 0.058 + 0.01 * rng.random(shape), "probability", arm)
    tokens = rng.integers(0, 17, (2, 8, 5))
    variables |= {
        "self_patch_max_change": (("layer", "index"), np.zeros(shape), "logits", "self-patch"),
        "example_src_token": (("example", "token_index"), tokens[0], "token", "donor"),
        "example_dst_token": (("example", "token_index"), tokens[1], "token", "base"),
        "example_p_import": (("example", "layer", "index"), rng.random((8, *shape)) * 0.8, "probability", "imported"),
    }
    coords = {"layer": np.arange(layers), "index": np.array(indices), "example": np.arange(8), "token_index": np.arange(5)}
    data = dataset(coords, variables, src="p5", dst="c0", site="resid_pre", align="none", noise_floor=1 / 17, modulus=17, read_index=4)
    said = finding or "c0 imports the donor's prediction (0.389 at layer 5, index 4), not its rule (0.061, chance 0.059)."
    summary = {
        "src": "p5",
        "dst": "c0",
        "layer": layers - 1,
        "p_import": 0.389,
        "p_rule": 0.0605,
        "noise_floor": 1 / 17,
        "n_pairs": 1500,
        "finding": said,
    }
    return Result("interchange", data, ("layer", "index"), summary, manifest(subject))


def evaluation(run: str = "c0") -> Result:
    """An evaluation with a clear wall after position 5."""
    at = np.arange(1, 16)
    inside = at <= 5
    exact = np.array([4.087, 4.008, 2.837, 2.131, 2.008, *[1.995] * 10])
    mae = np.where(inside, 0.05, 1.6)
    variables: dict[str, Any] = {
        "entropy_exact": (("position",), exact, "bits", "entropy of the exact predictive H(P)"),
        "entropy_model": (("position",), exact + np.where(inside, 0.02, 1.3), "bits", "entropy of the model's softmax H(Q)"),
        "mae": (("position",), mae, "bits", "mean |H(P) - H(Q)|"),
        "best_mass": (("position",), np.where(inside, 0.9, 0.2), "probability", "mass"),
        "best_posterior": (("position",), np.where(at <= 2, np.nan, 0.93), "probability", "posterior"),
    }
    bounds(variables, ["mae", "entropy_model", "best_mass"], 0.02)
    summary: dict[str, Any] = {
        "run": run,
        "trained_mae": 0.05,
        "untrained_mae": 1.6,
        "wall_ratio": 32.0,
        "wall_ratio_low": 30.0,
        "wall_ratio_high": 34.0,
    }
    summary |= {"wall_sharpness": 1.55, "kl_nats": 0.8, "bayes_best_mass": 0.2, "bayes_best_posterior": 0.93}
    summary["finding"] = f"{run}: entropy error jumps from 0.050 to 1.600 bits after position 5; the wall stands (ratio 32)."
    return Result("eval", dataset({"position": at}, variables, horizon=5, run=run, modulus=17), ("position",), summary, manifest(run))


def gains(model: str = "HuggingFaceTB/SmolLM2-135M", layers: int = 30) -> Result:
    """Gains with one loud MLP, quieter without the sink token."""
    rng = np.random.default_rng(1)
    attn, mlp = 0.3 + 0.9 * rng.random(layers), 0.5 + rng.random(layers)
    mlp[layers // 3], mlp[-1] = 490.0, 81.6
    quiet = np.where(mlp > 10, mlp / 8, mlp)
    variables: dict[str, Any] = {
        "attn_gain": (("layer",), attn, "1", "attention gain"),
        "mlp_gain": (("layer",), mlp, "1", "MLP gain"),
        "attn_gain_no_sink": (("layer",), attn * 0.95, "1", "attention gain without sinks"),
        "mlp_gain_no_sink": (("layer",), quiet, "1", "MLP gain without sinks"),
        "resid_pre_norm": (("layer",), np.geomspace(2, 900, layers), "L2", "residual"),
        "attn_out_norm": (("layer",), np.geomspace(1, 30, layers), "L2", "attention"),
        "mlp_out_norm": (("layer",), np.geomspace(1, 600, layers), "L2", "MLP"),
    }
    for name in ("attn_gain", "mlp_gain", "attn_gain_no_sink", "mlp_gain_no_sink"):
        dims, values, units, long_name = variables[name]
        variables[f"{name}_low"] = (dims, values * 0.9, units, long_name)
        variables[f"{name}_high"] = (dims, values * 1.1, units, long_name)
    summary = {"model": model, "definition": "sublayer", "n_layers": layers, "attn_contracting": f"{int((attn < 1).sum())}/{layers}"}
    summary["finding"] = f"{model}: the final MLP amplifies 81.6 times, 10.2 without the attention sink."
    data = dataset({"layer": np.arange(layers)}, variables, model=model, definition="sublayer", tokens="ratio_of_means")
    return Result("gains", data, ("layer",), summary, manifest(model))


def attention(
    name: str = "c0", *, layers: int = 6, heads: int = 4, length: int = 16, tokens: list[str] | None = None, run: str | None = None
) -> Result:
    """Causal patterns on one example; tokens may be text."""
    rng = np.random.default_rng(2)
    scores = np.where(np.tril(np.ones((length, length), dtype=bool)), rng.normal(0, 2, (layers, heads, length, length)), -np.inf)
    pattern = np.exp(scores - scores.max(-1, keepdims=True))
    pattern /= pattern.sum(-1, keepdims=True)
    log_prob = np.log(rng.random(length))
    log_prob[0] = np.nan
    names = np.array(tokens if tokens is not None else rng.integers(0, 17, length).tolist())
    variables: dict[str, Any] = {
        "pattern": (("layer", "head", "query", "key"), pattern, "probability", "attention pattern"),
        "token": (("query",), names, "token", "token"),
        "token_log_prob": (("query",), log_prob, "nats", "log-probability of the token"),
    }
    coords = {"layer": np.arange(layers), "head": np.arange(heads), "query": np.arange(length), "key": np.arange(length)}
    data = dataset(coords, variables, run=run or name, horizon=5, example=name)
    return Result("attention", data, ("layer", "head", "query", "key"), {"run": run or name}, manifest(f"{name} attention"))


def probe(run: str = "c0", *, layers: int = 6, indices: int = 15) -> Result:
    """Probes that find the token until the wall, and less behind it; the entropy has no accuracy, the others no R^2."""
    targets = ["token", "a", "entropy"]
    at, shape = np.arange(indices), (layers, indices, len(targets))
    depth = np.linspace(0.2, 1, layers)[:, None, None]
    found = np.where(at < 5, 0.53, 0.2)[None, :, None] * depth * np.ones(shape)
    of_entropy = np.arange(len(targets)) == 2
    accuracy, r2 = np.where(of_entropy, np.nan, found), np.where(of_entropy, found, np.nan)
    r2[:, 0] = np.nan
    control = np.full(shape, 0.058)
    variables: dict[str, Any] = {
        "run": (("layer", "index", "target"), np.full(shape, run), "name", "the run"),
        "accuracy": (("layer", "index", "target"), accuracy, "fraction", "accuracy"),
        "control_accuracy": (("layer", "index", "target"), np.where(of_entropy, np.nan, control), "fraction", "shuffled labels"),
        "selectivity": (("layer", "index", "target"), found - control, "fraction", "accuracy minus control"),
        "r2": (("layer", "index", "target"), r2, "R^2", "ridge"),
        "control_r2": (("layer", "index", "target"), np.where(of_entropy, -0.01, control * np.nan), "R^2", "ridge on shuffled values"),
        "chance": (("layer", "index", "target"), np.where(of_entropy, np.nan, control + 1 / 17 - 0.058), "fraction", "chance"),
        "ceiling": (("layer", "index", "target"), np.where(of_entropy, np.nan, control + 0.472), "fraction", "exact answer"),
    }
    bounds(variables, ["accuracy", "selectivity", "r2"], 0.03)
    data = dataset(
        {"layer": np.arange(layers), "index": at, "target": np.array(targets)}, variables, run=run, horizon=5, start=0, modulus=17
    )
    summary = {"run": run, "site": "resid_post", "n_test": 1000, "token_accuracy_5": 0.53, "token_accuracy_6": 0.2}
    summary["finding"] = f"Behind the wall the next token is mostly gone for a linear probe of {run}: 0.200, exact answer 0.530."
    return Result("probe", data, ("layer", "index", "target"), summary, manifest(run))


def audited(verdict: str) -> Result:
    """A kind with a verdict and a seed in its summary."""
    data = dataset({"epoch": np.arange(3)}, {"cosine": (("epoch",), np.array([0.1, 0.2, 0.3]), "1", "cosine")})
    summary = {"verdict": verdict, "seed": 7, "finding": f"Judged {verdict}."}
    return Result("judged", data, ("epoch",), summary, manifest(f"net {verdict}"))


def plugin(kind: str = "echo", text: str = ATTACK) -> Result:
    """A kind nobody made an exhibit for, hostile in every string."""
    variables: dict[str, Any] = {"word": (("row",), np.array(HOSTILE), "text", text), "size": (("row",), np.arange(8) / 3, "1", "size")}
    summary = {"finding": f"Echo says {text}", text: text}
    return Result(kind, dataset({"row": np.arange(8)}, variables, note=text), ("row",), summary, manifest(text, command=text, note=text))


def hostile_store(root: Path) -> Path:
    """A store with every kind, hostile strings in each, and one damaged Result."""
    tokens = [HOSTILE[place % len(HOSTILE)] for place in range(15)] + [LONG]
    interchange().save(root)
    interchange(ATTACK, layers=1, finding=ATTACK).save(root)
    evaluation().save(root)
    evaluation(ATTACK).save(root)
    gains().save(root)
    gains("<s>" + ATTACK, layers=6).save(root)
    attention().save(root)
    attention("hostile", layers=2, heads=2, tokens=tokens).save(root)
    plugin().save(root)
    broken = evaluation("broken").save(root)
    (broken / "arrays.nc").write_bytes(b"not netCDF")
    return root
