"""Probes of every cell in batches against a scikit-learn LogisticRegression loop: same rows, labels, split and penalties, in one run.

    python benchmarks/probes.py [--run c0] [--n 4000] [--threads 1] [--cells 12] [--only raw,standardised,path]

Three tables. `raw`: activations as captured, scikit-learn's default C = 1. `standardised`: each feature divided by its standard
deviation, which spares scikit-learn most of its iterations; C = 1 again. `path`: what `wallprobe probe` does, standardised, the
strength chosen along a path by the validation loss. The token's and the class's loops run over every cell (layer x index) and
control, those of a and b over a random sample of cells; times are per fit, with centring or standardising and scoring.
scikit-learn keeps its default tolerance. One thread for both by default: scikit-learn's fits are too small to share, and on a busy
machine two threads wait for each other, which flatters the batch beyond reason. There read the processor's ratio, too.
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
from wallprobe.hooks.probes import fit as probes_fit
from wallprobe.hooks.probes import measure as probes
from wallprobe.hooks.probes.targets import classification
from wallprobe.rng import generator
from wallprobe.store.runs import resolve_run
from wallprobe.tasks.registry import from_manifest

ROUNDS = 3
GROUPS = ((("token",), ("class",)), (("a", "b"),))  # by rows, then by number of classes: what one batched solve takes
TABLES = ("raw", "standardised", "path")


@dataclass(frozen=True)
class Group:
    """Cells of one set of rows, and the problems fitted to them.

    Attributes:
        names: targets.
        rows: activations, training rows first, then validation, then test.
        solves: labels of all rows, each target's followed by its control's, and their number of classes.
        sizes: training and validation rows.
    """

    names: tuple[str, ...]
    rows: torch.Tensor
    solves: tuple[tuple[torch.Tensor, int], ...]
    sizes: tuple[int, int]

    def sample(self, cells: Sequence[int]) -> "Group":
        """Some of the cells."""
        chosen = list(cells)
        return Group(self.names, self.rows[chosen], tuple((labels[chosen], classes) for labels, classes in self.solves), self.sizes)


def main() -> None:
    """Time both and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="c0")
    parser.add_argument("--n", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cells", type=int, default=12, help="cells of scikit-learn's loop for a and b")
    parser.add_argument("--only", default=",".join(TABLES), help="which tables")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    groups = gather(options.run, options.n)
    cells, chosen = groups[0].rows.shape[0], options.only.split(",")
    drawn = sorted(torch.randperm(cells, generator=generator("benchmark"))[: options.cells].tolist())
    head = f"{options.run}, n = {options.n}, {groups[0].rows.shape[2]} features, fp32, threads {options.threads}"
    Console().print(f"{cells} cells; scikit-learn's loop takes all for token and class, cells {drawn} for a and b", soft_wrap=True)
    with threadpool_limits(options.threads):
        for table in chosen:
            compare(f"{table}: {head}", groups, drawn, standardise=table != "raw", path=table == "path")


def gather(name: str, n: int) -> list[Group]:
    """The activations and labels that `wallprobe probe` takes."""
    run = resolve_run(name)
    task, loaded = from_manifest(run.manifest["task"]), models.load_run(run)
    drawn = task.sample(n, generator(0, "probe"))
    exact = task.posterior(drawn.tokens)
    states = probes.activations(loaded, drawn.tokens, tuple(range(loaded.n_layers)), "resid_post")
    split, groups = probes.Split.of(n), []
    for families in GROUPS:
        solves = []
        for names in families:
            targets = [classification(task, drawn, exact, target) for target in names]
            part, problems = split.among(targets[0].sequences), []
            for target in targets:
                true = target.label[part.order].T.repeat(loaded.n_layers, 1)
                problems += [true, true.gather(1, probes.shuffles(len(true), true.shape[1], 0, target.name))]
            solves.append((torch.stack(problems, dim=1), targets[0].classes))
        rows = states[:, :, part.order].flatten(0, 1)
        groups.append(
            Group(tuple(name for names in families for name in names), rows, tuple(solves), (len(part.train), len(part.validation)))
        )
    return groups


def batched(group: Group, strengths: Sequence[float], standardise: bool) -> np.ndarray:
    """Accuracy [cell, problem] by batched solves."""
    scores = []
    for some, given in probes_fit.in_chunks(group.rows, *group.sizes, standardise=standardise):
        parts = []
        for labels, classes in group.solves:
            # one row for each class: for two classes, scikit-learn's single row at strength s is the pair at 2 s
            rising = [value * (2 if classes == 2 else 1) for value in strengths]
            fit = probes_fit.softmax_path(given, labels[some, :, : given.fitted], classes, rising)
            right = probes_fit.best(fit.weights, given.columns[..., given.fitted :]) == labels[some, :, given.fitted :]
            parts.append(right.double().mean(2).numpy())
        scores.append(np.concatenate(parts, axis=1))
    return np.concatenate(scores)


def looped(group: Group, strengths: Sequence[float], standardise: bool) -> np.ndarray:
    """The same by scikit-learn, one fit a cell, problem and strength; a path stops by the same rule."""
    train, held = group.sizes[0], sum(group.sizes)
    labels = torch.cat([labels for labels, _ in group.solves], dim=1).numpy()
    scores = np.zeros(labels.shape[:2])
    for cell, rows in enumerate(group.rows.numpy()):
        given = StandardScaler(with_std=standardise).fit(rows[:train]).transform(rows)
        for problem, label in enumerate(labels[cell]):
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


def compare(title: str, groups: Sequence[Group], drawn: Sequence[int], *, standardise: bool, path: bool) -> None:
    """Run both on every group and print a row each, and the whole."""
    table = Table("target", "fits", "batched", "scikit-learn", "ratio", "CPU", "mean diff.", "worst", title=title)
    totals, gaps, fits = np.zeros(4), [], 0
    for group in groups:
        strengths = probes.STRENGTHS if path else (1 / group.sizes[0],)
        cells = list(drawn) if "a" in group.names else list(range(len(group.rows)))
        rounds = [timed(batched, group, strengths, standardise) for _ in range(ROUNDS - 1)]
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            loop = timed(looped, group.sample(cells), strengths, standardise)
        rounds.append(timed(batched, group, strengths, standardise))
        gap, size = 100 * (rounds[0][2][cells] - loop[2]), rounds[0][2].size
        own = [statistics.median(one[place] for one in rounds) / size for place in (0, 1)]
        times = np.array([own[0], loop[0] / gap.size, own[1], loop[1] / gap.size])
        gaps.append(gap.ravel())
        totals, fits = totals + times * size, fits + size
        table.add_row(", ".join(group.names), str(gap.size), *figures(times, gaps[-1]))
    table.add_section()
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
