"""What a gradient costs at a fixed point and how near it is: this package's estimators beside torchdeq, the same block, the same residual.

    python benchmarks/estimators.py [--run eq-demo-ep] [--resinit 0.3] [--batch 16] [--tol 1e-5] [--repeats 5]

One process, one thread. Cosines are to implicit differentiation in fp64, over the block's parameters. Seconds are the process's own,
the least of some repeats taken in turn, so that a busy machine lengthens none of them more than another. torchdeq solves for the same
fixed point, by the same Euler step and by Anderson acceleration of z = (x + branches(z)) / (1 + c), until every sequence's relative
residual is below the tolerance that our free phase reaches too; it differentiates implicitly. Its block is our block under autograd.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from wallprobe.models.equilibrium import EqConfig, Equilibrium, PlainEquilibrium, fill
from wallprobe.store.runs import find_run
from wallprobe.tasks.text import TextSpec, from_manifest, load_text
from wallprobe.training.equilibrium.estimators import cross_entropy
from wallprobe.training.estimators.gradients import named_grads
from wallprobe.training.estimators.protocol import Batch, GradResult, make_estimator

Grad = Callable[[], GradResult]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="an equilibrium run; default a model at its initialisation")
    parser.add_argument("--runs", type=Path, help="run store")
    parser.add_argument("--resinit", type=float, default=0.3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tol", type=float, default=1e-5, help="relative step residual of every free phase")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, batch = subject(given.run, given.runs, given.resinit, given.batch)
    steps, res = free_steps(model, batch, given.tol)
    out = Console()
    out.print(
        f"{given.run or 'initialisation'}: width {model.cfg.d_model}, {batch.x.shape[0]} x {batch.x.shape[1]} tokens, "
        f"{steps} Euler steps to a residual of {res:.1e}; torch {torch.__version__}, one thread",
        soft_wrap=True,
    )
    exact = reference(model, batch)
    grads = ours(model, batch, steps) | peers(model, batch, given.tol)
    seconds, found = clock(grads, given.repeats)
    table = Table("gradient", "CPU s", "to implicit", "cosine", "norm ratio", "residual", title="A batch's gradient")
    base = seconds["implicit"]
    for name, result in found.items():
        cos, size = compare(result, exact)
        res = result.aux.get("res")
        cells = (f"{seconds[name]:.3f}", f"{seconds[name] / base:.2f} x", f"{cos:.6f}", f"{size:.4f}", "-" if res is None else f"{res:.1e}")
        table.add_row(name, *cells)
    out.print(table)


def subject(name: str | None, store: Path | None, resinit: float, rows: int) -> tuple[Equilibrium, Batch]:
    """A model in fp32 and a batch of its text."""
    if name is None:
        text = load_text(TextSpec())
        model = PlainEquilibrium(EqConfig(len(text.vocabulary), resinit=resinit), 0)
    else:
        run = find_run(name, store)
        text = from_manifest(run.manifest["task"])
        model = PlainEquilibrium(EqConfig.of(run.manifest["shape"]))
        fill(model, run.tensors())
    return model, Batch(*text.batch(rows, model.cfg.n_ctx, "benchmark"))


def free_steps(model: Equilibrium, batch: Batch, tol: float) -> tuple[int, float]:
    """Euler steps until every sequence's residual is below the tolerance, and the whole batch's there."""
    x = model.embedded(batch.x)
    found = model.relax(x, steps=1)
    for steps in range(1, 5000):
        if float(found.per_sequence.max()) < tol:
            return steps, found.res
        found = model.relax(x, z0=found.z, steps=1)
    raise SystemExit("the free phase does not converge on this model; give another --run, a smaller --resinit or a larger --tol")


def reference(model: Equilibrium, batch: Batch) -> GradResult:
    """Implicit differentiation at the converged state, fp64."""
    try:
        model.double()
        found = make_estimator("implicit", model, 0, free_steps=3000, max_steps=20_000)(model, batch)
    finally:
        model.float()
    if not found.aux["converged"]:
        raise SystemExit("the reference does not converge on this model; give another --run or a smaller --resinit")
    return found


def ours(model: Equilibrium, batch: Batch, steps: int) -> dict[str, Grad]:
    """This package's estimators after as many free steps."""
    free: dict[str, Any] = {"free_steps": steps}
    wanted = {
        "implicit": ("implicit", free),
        f"EP N=2, T2={model.cfg.T2}": ("eqprop", free),
        f"EP N=2, T2={steps}": ("eqprop", free | {"steps": steps}),
        f"EP N=4, T2={model.cfg.T2}": ("eqprop-4", free),
        f"EP uncorrected, T2={model.cfg.T2}": ("eqprop-plain", free),
        f"TBPTT {model.cfg.T2}": ("tbptt", free | {"steps": model.cfg.T2}),
        f"BPTT {steps}": ("bptt", {"steps": steps}),
    }

    def taken(name: str, options: dict[str, Any]) -> Grad:
        estimator = make_estimator(name, model, 0, **options)
        return lambda: estimator(model, batch)

    return {label: taken(name, options) for label, (name, options) in wanted.items()}


def peers(model: Equilibrium, batch: Batch, tol: float) -> dict[str, Grad]:
    """torchdeq's implicit gradients at the same residual; none where it is not installed."""
    try:
        from torchdeq import get_deq
    except ImportError:
        Console(stderr=True).print("torchdeq is not installed (pip install torchdeq): its rows are left out")
        return {}
    cfg = model.cfg
    common = {"f_max_iter": 2000, "b_max_iter": 2000, "f_stop_mode": "rel", "b_stop_mode": "rel", "f_tol": tol, "b_tol": 1e-6, "ift": True}
    solvers = {
        "torchdeq, Euler": get_deq(f_solver="fixed_point_iter", b_solver="fixed_point_iter", **common),
        # A step of this map is F / (1 + c): 1 / (eps (1 + c)) times an Euler step.
        "torchdeq, Anderson": get_deq(
            f_solver="anderson",
            b_solver="anderson",
            **common | {"f_tol": tol / (cfg.eps * (1 + cfg.c)), "f_max_iter": 500, "b_max_iter": 500},
        ),
    }

    def made(name: str) -> Grad:
        deq = solvers[name]

        def gradient() -> GradResult:
            x, fused = model.embedded(batch.x), model.fused()

            def step(z: torch.Tensor) -> torch.Tensor:
                pushed = x + fused.branches(z)
                return z + cfg.eps * (pushed - (1 + cfg.c) * z) if name.endswith("Euler") else pushed / (1 + cfg.c)

            found, _ = deq(step, x.detach())
            loss = cross_entropy(model.logits(found[-1]), batch)
            with torch.no_grad():
                z = found[-1]
                res = cfg.eps * float(model.force(z, x).norm() / z.norm())
            return GradResult(named_grads(model, loss), loss.detach(), {"res": res})

        return gradient

    return {name: made(name) for name in solvers}


def clock(grads: dict[str, Grad], repeats: int) -> tuple[dict[str, float], dict[str, GradResult]]:
    """Least CPU seconds of each, taken in turn, and a result of each."""
    least: dict[str, float] = {}
    found = {name: gradient() for name, gradient in grads.items()}
    for _ in range(repeats):
        for name, gradient in grads.items():
            start = time.process_time()
            gradient()
            least[name] = min(least.get(name, float("inf")), time.process_time() - start)
    return least, found


def compare(result: GradResult, exact: GradResult) -> tuple[float, float]:
    """Cosine and ratio of norms over the block's parameters, fp64."""
    names = [name for name in exact.grads if name.startswith("blocks.")]
    a, b = (torch.cat([one.grads[name].double().flatten() for name in names]) for one in (result, exact))
    return float(a @ b / (a.norm() * b.norm())), float(a.norm() / b.norm())


if __name__ == "__main__":
    main()
