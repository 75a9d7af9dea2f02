"""Probes of every cell in one batch against a scikit-learn LogisticRegression loop: same rows, labels, split and penalties, in one run.

    python benchmarks/probes.py [--run c0] [--n 4000] [--threads 2] [--cells 12] [--only default,path]

Three tables: at scikit-learn's default C = 1 and at the strength 0.01, over every cell (layer x index), target and control; and along
the path of strengths, as `wallprobe probe` fits, over a random sample of cells. Both start from the same fp32 activations,
standardise on the training rows, fit, and score on the test rows; scikit-learn has its own default tolerance. The processor
ratio is what a busy machine leaves standing.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from wallprobe import models
from wallprobe.hooks import probes, probes_fit
from wallprobe.hooks.probes_targets import classification
from wallprobe.rng import generator
from wallprobe.runs import resolve_run
from wallprobe.tasks.registry import from_manifest

ROUNDS = 3
FAMILIES = (("token",), ("class",), ("a", "b"))
TABLES = ("default", "strength", "path")
STRENGTH = 0.01


@dataclass(frozen=True)
class Family:
    """Targets of one shape, each followed by its control: what one batched solve takes.

    Attributes:
        names: targets.
        rows: activations, training rows first, then validation, then test.
        labels: of all rows.
        sizes: training and validation rows.
        classes: number of classes.
    """

    names: tuple[str, ...]
    rows: torch.Tensor
    labels: torch.Tensor
    sizes: tuple[int, int]
    classes: int

    def sample(self, cells: Sequence[int]) -> "Family":
        """Some of the cells."""
        return Family(self.names, self.rows[list(cells)], self.labels[list(cells)], self.sizes, self.classes)


def main() -> None:
    """Time both and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="c0")
    parser.add_argument("--n", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cells", type=int, default=12, help="cells of the path's table, drawn at random")
    parser.add_argument("--only", default=",".join(TABLES), help="which tables")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    families = gather(options.run, options.n)
    cells, chosen = families[0].rows.shape[0], options.only.split(",")
    drawn = sorted(torch.randperm(cells, generator=generator("benchmark"))[: options.cells].tolist())
    head = f"{options.run}, n = {options.n}, {families[0].rows.shape[2]} features, fp32, {options.threads} threads"
    with threadpool_limits(options.threads):
        if "default" in chosen:
            compare(f"C = 1; {cells} cells; {head}", families, lambda family: (1 / family.sizes[0],))
        if "strength" in chosen:
            compare(f"Strength {STRENGTH:g}; {cells} cells; {head}", families, lambda _: (STRENGTH,))
        if "path" in chosen:
            path = ", ".join(f"{strength:g}" for strength in probes.STRENGTHS)
            some = [family.sample(drawn) for family in families]
            compare(f"Path {path}; cells {drawn} of {cells}; {head}", some, lambda _: probes.STRENGTHS)


def gather(name: str, n: int) -> list[Family]:
    """The activations and labels that `wallprobe probe` takes."""
    run = resolve_run(name)
    task, loaded = from_manifest(run.manifest["task"]), models.load_run(run)
    drawn = task.sample(n, generator(0, "probe"))
    exact = task.posterior(drawn.tokens)
    states = probes.activations(loaded, drawn.tokens, tuple(range(loaded.n_layers)), "resid_post")
    split, families = probes.Split.of(n), []
    for names in FAMILIES:
        targets = [classification(task, drawn, exact, target) for target in names]
        part = split.among(targets[0].sequences)
        rows, problems = states[:, :, part.order].flatten(0, 1), []
        for target in targets:
            true = target.label[part.order].T.repeat(loaded.n_layers, 1)
            problems += [true, true.gather(1, probes.shuffles(len(true), true.shape[1], 0, target.name))]
        sizes = len(part.train), len(part.validation)
        families.append(Family(names, rows, torch.stack(problems, dim=1), sizes, targets[0].classes))
    return families


def batched(family: Family, strengths: Sequence[float]) -> np.ndarray:
    """Accuracy [cell, problem] by the batched solve."""
    given = probes_fit.features(family.rows, *family.sizes)
    # one row for each class: for two classes, scikit-learn's single row at strength s is the pair at 2 s
    scale = 2.0 if family.classes == 2 else 1.0
    fit = probes_fit.softmax_path(given, family.labels[..., : given.fitted], family.classes, [scale * value for value in strengths])
    said = probes_fit.logits(fit.weights, given.columns[..., given.fitted :]).argmax(2)
    return (said == family.labels[..., given.fitted :]).double().mean(2).numpy()


def looped(family: Family, strengths: Sequence[float]) -> np.ndarray:
    """The same by scikit-learn, one fit a cell, problem and strength; a path stops by the same rule."""
    train, held = family.sizes[0], sum(family.sizes)
    scores = np.zeros(family.labels.shape[:2])
    for cell, (rows, labels) in enumerate(zip(family.rows.numpy(), family.labels.numpy(), strict=True)):
        scaler = StandardScaler().fit(rows[:train])
        given = scaler.transform(rows)
        for problem, label in enumerate(labels):
            least = np.inf
            for strength in strengths:
                model = LogisticRegression(C=1 / (train * strength), max_iter=2000).fit(given[:train], label[:train])
                loss = (
                    log_loss(label[train:held], model.predict_proba(given[train:held]), labels=model.classes_)
                    if len(strengths) > 1
                    else 0.0
                )
                if loss >= least:
                    break
                least, scores[cell, problem] = loss, model.score(given[held:], label[held:])
    return scores


def compare(title: str, families: Sequence[Family], strengths_of: Callable[[Family], Sequence[float]]) -> None:
    """Run both on every family and print a row each, and the whole."""
    table = Table("target", "fits", "batched, s", "scikit-learn, s", "ratio", "CPU ratio", "mean difference", "worst cell", title=title)
    totals, gaps = np.zeros(4), []
    for family in families:
        strengths = strengths_of(family)
        rounds = [timed(batched, family, strengths) for _ in range(ROUNDS - 1)]
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            loop = timed(looped, family, strengths)
        rounds.append(timed(batched, family, strengths))
        own = [statistics.median(one[place] for one in rounds) for place in (0, 1)]
        gap = 100 * (rounds[0][2] - loop[2])
        gaps.append(gap)
        totals += [own[0], loop[0], own[1], loop[1]]
        table.add_row(", ".join(family.names), str(gap.size), *cells(own[0], loop[0], own[1], loop[1], gap))
    table.add_section()
    table.add_row("all", str(sum(gap.size for gap in gaps)), *cells(*totals, np.concatenate([gap.ravel() for gap in gaps])))
    table.caption = (
        "Each target and its control. Differences of test accuracy in points (batched minus scikit-learn); the worst is the largest."
    )
    Console().print(table)


def cells(own: float, loop: float, own_cpu: float, loop_cpu: float, gap: np.ndarray) -> list[str]:
    """The figures of a row."""
    worst = gap.ravel()[np.abs(gap).argmax()]
    return [f"{own:.2f}", f"{loop:.2f}", f"{loop / own:.1f} x", f"{loop_cpu / own_cpu:.1f} x", f"{gap.mean():+.3f}", f"{worst:+.2f}"]


def timed(
    work: Callable[[Family, Sequence[float]], np.ndarray], family: Family, strengths: Sequence[float]
) -> tuple[float, float, np.ndarray]:
    """Wall seconds, processor seconds and what the work returned."""
    wall, processor = time.perf_counter(), time.process_time()
    made = work(family, strengths)
    return time.perf_counter() - wall, time.process_time() - processor, made


if __name__ == "__main__":
    main()
