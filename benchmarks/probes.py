"""Probes of every cell in batches against a scikit-learn LogisticRegression loop: same rows, labels, split and penalties, in one run.

    python benchmarks/probes.py [--run c0] [--n 4000] [--threads 2] [--cells 12] [--only raw,standardised,path]

Three tables. `raw`: activations as captured, scikit-learn's default C = 1. `standardised`: each feature divided by its standard
deviation, which spares scikit-learn most of its iterations; C = 1 again. `path`: what `wallprobe probe` does, standardised, the strength
chosen along a path by the validation loss. The token's loop runs over every cell (layer x index) and control, the others' over a
random sample of cells; times are per fit, with centring or standardising and scoring. scikit-learn keeps its default tolerance.
On a busy machine read the processor's ratio.
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
TABLES = ("raw", "standardised", "path")


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
    parser.add_argument("--cells", type=int, default=12, help="cells of scikit-learn's loop for targets other than the token")
    parser.add_argument("--only", default=",".join(TABLES), help="which tables")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    families = gather(options.run, options.n)
    cells, chosen = families[0].rows.shape[0], options.only.split(",")
    drawn = sorted(torch.randperm(cells, generator=generator("benchmark"))[: options.cells].tolist())
    head = f"{options.run}, n = {options.n}, {families[0].rows.shape[2]} features, fp32, threads {options.threads}"
    Console().print(f"{cells} cells; scikit-learn's loop takes all for the token, cells {drawn} for the others", soft_wrap=True)
    with threadpool_limits(options.threads):
        for table in chosen:
            compare(f"{table}: {head}", families, drawn, standardise=table != "raw", path=table == "path")


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


def batched(family: Family, strengths: Sequence[float], standardise: bool) -> np.ndarray:
    """Accuracy [cell, problem] by the batched solve."""
    given = probes_fit.features(family.rows, *family.sizes, standardise=standardise)
    # one row for each class: for two classes, scikit-learn's single row at strength s is the pair at 2 s
    scale = 2.0 if family.classes == 2 else 1.0
    fit = probes_fit.softmax_path(given, family.labels[..., : given.fitted], family.classes, [scale * value for value in strengths])
    said = probes_fit.logits(fit.weights, given.columns[..., given.fitted :]).argmax(2)
    return (said == family.labels[..., given.fitted :]).double().mean(2).numpy()


def looped(family: Family, strengths: Sequence[float], standardise: bool) -> np.ndarray:
    """The same by scikit-learn, one fit a cell, problem and strength; a path stops by the same rule."""
    train, held = family.sizes[0], sum(family.sizes)
    scores = np.zeros(family.labels.shape[:2])
    for cell, (rows, labels) in enumerate(zip(family.rows.numpy(), family.labels.numpy(), strict=True)):
        given = StandardScaler(with_std=standardise).fit(rows[:train]).transform(rows)
        for problem, label in enumerate(labels):
            least = np.inf
            for strength in strengths:
                model = LogisticRegression(C=1 / (train * strength), max_iter=10_000).fit(given[:train], label[:train])
                loss = 0.0
                if len(strengths) > 1:
                    loss = log_loss(label[train:held], model.predict_proba(given[train:held]), labels=model.classes_)
                if loss >= least:
                    break
                least, scores[cell, problem] = loss, model.score(given[held:], label[held:])
    return scores


def compare(title: str, families: Sequence[Family], drawn: Sequence[int], *, standardise: bool, path: bool) -> None:
    """Run both on every family and print a row each, and the whole."""
    table = Table("target", "fits", "batched", "scikit-learn", "ratio", "CPU", "mean diff.", "worst", title=title)
    totals, gaps = np.zeros(4), []
    for family in families:
        strengths = probes.STRENGTHS if path else (1 / family.sizes[0],)
        cells = range(len(family.rows)) if family.names == ("token",) else drawn
        rounds = [timed(batched, family, strengths, standardise) for _ in range(ROUNDS - 1)]
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            loop = timed(looped, family.sample(cells), strengths, standardise)
        rounds.append(timed(batched, family, strengths, standardise))
        gap = 100 * (rounds[0][2][list(cells)] - loop[2])
        gaps.append(gap.ravel())
        own = [statistics.median(one[place] for one in rounds) / rounds[0][2].size for place in (0, 1)]
        peer = [loop[place] / loop[2].size for place in (0, 1)]
        times = np.array([own[0], peer[0], own[1], peer[1]])
        totals += times * rounds[0][2].size
        table.add_row(", ".join(family.names), str(gap.size), *figures(times, gaps[-1]))
    table.add_section()
    fits = sum(family.labels[:, :, 0].numel() for family in families)
    table.add_row("all", str(sum(map(len, gaps))), *figures(totals / fits, np.concatenate(gaps)))
    table.caption = "Milliseconds a fit; ratio of wall and of processor time; test accuracy, batched minus scikit-learn, in points."
    Console().print(table)


def figures(times: np.ndarray, gap: np.ndarray) -> list[str]:
    """The figures of a row, from seconds a fit (wall of both, then processor of both) and differences of accuracy."""
    own, peer, own_cpu, peer_cpu = times
    worst = gap[np.abs(gap).argmax()]
    return [
        f"{1e3 * own:.1f}",
        f"{1e3 * peer:.1f}",
        f"{peer / own:.1f} x",
        f"{peer_cpu / own_cpu:.1f} x",
        f"{gap.mean():+.3f}",
        f"{worst:+.2f}",
    ]


def timed(work: Callable[..., np.ndarray], *given: object) -> tuple[float, float, np.ndarray]:
    """Wall seconds, processor seconds and what the work returned."""
    wall, processor = time.perf_counter(), time.process_time()
    made = work(*given)
    return time.perf_counter() - wall, time.process_time() - processor, made


if __name__ == "__main__":
    main()
