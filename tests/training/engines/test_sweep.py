"""The sweep: order, skipping, failures, retries; real workers that are killed; one lock a run."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from wallprobe.errors import BusyError, ConfigError, WallprobeError
from wallprobe.store import runs, storage
from wallprobe.tasks.registry import parse_task
from wallprobe.training.engines import INSIDE, Event, perform
from wallprobe.training.engines import sweep as sweeps
from wallprobe.training.engines.local import LocalEngine
from wallprobe.training.wall import loop, work
from wallprobe.training.wall.conditions import get_condition
from wallprobe.training.wall.recipes import Recipe

TINY = Recipe(preset="tiny", n_layers=1, d_model=8, n_heads=2, steps=60, batch=4, muon_lr=0.01, adam_lr=1e-3, warmup=2, checkpoint_every=10)
WILD = dataclasses.replace(TINY, adam_lr=1e30, muon_lr=0.0, weight_decay=0.0)


def sweep(*arguments, **settings):
    """One thread a run: the number of threads can change the last bits."""
    return sweeps.sweep(*arguments, **{"threads": 1} | settings)


def jobs(*names, recipe=TINY):
    parsed = [runs.RunName.parse(name) for name in names]
    return [loop.Job(get_condition(name.condition), recipe, name.seed) for name in parsed]


@pytest.fixture
def unevaluated(monkeypatch):
    """No evaluation: it takes longer than these trainings."""
    monkeypatch.setattr(work, "_stored_summary", lambda run: {"trained_mae": 0.1, "wall_ratio": 2.0, "finding": ""})


@pytest.fixture(autouse=True)
def untouched(monkeypatch, one_thread):
    """What `perform` sets in a worker, `Inline` sets here."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))


class Inline:
    """An engine that trains in this process when asked for events, the latest task first, and loses whatever it is told to lose."""

    def __init__(self, slots=2, retries=2, lose=()):
        self.slots, self.retries, self.lose = slots, retries, list(lose)
        self.tasks, self.started, self.most, self.closed, self.stopped = [], [], 0, False, False

    def submit(self, task):
        self.tasks.append(task)
        self.started.append(str(task.job.name))
        self.most = max(self.most, len(self.tasks))

    def events(self, timeout):
        task, told = self.tasks.pop(), []
        name = task.job.name
        if str(name) in self.lose:
            self.lose.remove(str(name))
            return [Event(name, "lost", message="killed by signal 9")]
        try:
            record = perform(task, lambda at: told.append(Event(name, "progress", at)))
        except WallprobeError as error:
            return [Event(name, "failed", message=str(error))]
        return [*told, Event(name, "done", record=record)]

    def stop(self, grace):
        self.stopped = True

    def close(self):
        self.closed = True


def test_teachers_come_first_and_outcomes_keep_the_order(tmp_path, unevaluated):
    engine, updates = Inline(), []
    outcomes = sweep(jobs("c4", "c3", "c0", "c4@7", "c3@7"), tmp_path, engine=engine, on_progress=updates.append)
    assert [str(outcome.name) for outcome in outcomes] == ["c4", "c3", "c0", "c4@7", "c3@7"]
    assert all(outcome.state == "trained" and outcome.ok for outcome in outcomes)
    order = engine.started
    assert order.index("c3") < order.index("c4")
    assert order.index("c3@7") < order.index("c4@7")
    assert (engine.most, engine.closed, engine.stopped) == (2, True, False)
    ends = [update for update in updates if update.state == "trained"]
    assert len(ends) == 5
    assert {(update.step, update.steps) for update in ends} == {(60, 60)}
    assert {update.step for update in updates if update.cross_entropy is not None} == {50, 60}


def test_finished_runs_are_skipped_without_an_engine(tmp_path, unevaluated):
    sweep(jobs("c0", "c1"), tmp_path, engine=Inline())
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    engine = Inline()
    outcomes = sweep(jobs("c0", "c1"), tmp_path, engine=engine)
    assert [outcome.state for outcome in outcomes] == ["skipped", "skipped"]
    assert (engine.started, engine.closed) == ([], False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == stamps


def test_a_failure_is_told_and_the_others_go_on(tmp_path, unevaluated):
    chosen = jobs("c4", "c0") + jobs("c3", recipe=WILD)
    by_name = {str(outcome.name): outcome for outcome in sweep(chosen, tmp_path, engine=Inline(slots=1))}
    assert by_name["c0"].state == "trained"
    assert by_name["c3"].state == "failed"
    assert by_name["c3"].error.startswith("training c3 diverged before step")
    assert (by_name["c4"].state, by_name["c4"].error) == ("blocked", "its teacher c3 is failed")
    assert by_name["c4"].record()["weight_hash"] is None


def test_another_recipe_under_the_name_fails_that_run_alone(tmp_path, unevaluated):
    sweep(jobs("c0"), tmp_path, engine=Inline())
    before = (tmp_path / "c0@42" / runs.WEIGHTS).read_bytes()
    other = dataclasses.replace(TINY, steps=70)
    first, second = sweep(jobs("c0", "c1", recipe=other), tmp_path, engine=Inline())
    assert (first.state, second.state) == ("failed", "trained")
    assert "recipe.steps 60 there, 70 asked" in first.error
    assert (tmp_path / "c0@42" / runs.WEIGHTS).read_bytes() == before
    assert [outcome.state for outcome in sweep(jobs("c0", "c1", recipe=other), tmp_path, force=True, engine=Inline())] == ["trained"] * 2


def test_a_lost_worker_is_replaced_twice_and_then_told(tmp_path, unevaluated):
    updates = []
    engine = Inline(lose=["c0", "c0"])
    assert sweep(jobs("c0"), tmp_path / "a", force=True, engine=engine, on_progress=updates.append)[0].state == "trained"
    assert engine.started == ["c0"] * 3
    assert [update.error for update in updates if update.error] == ["its worker died (killed by signal 9) and it is tried again"] * 2
    outcome = sweep(jobs("c0"), tmp_path / "b", engine=Inline(lose=["c0"] * 3))[0]
    assert outcome.state == "failed"
    assert "its worker died (killed by signal 9)" in outcome.error


def test_an_interrupt_stops_the_engine_and_goes_on(tmp_path, unevaluated):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    engine = Inline()
    engine.events = lambda timeout: signal.raise_signal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            sweep(jobs("c0"), tmp_path, engine=engine)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (engine.stopped, engine.closed) == (True, True)


def test_a_stopped_training_leaves_a_checkpoint_of_that_very_step(tmp_path):
    def stop(at):
        raise loop.StopTraining

    (job,) = jobs("p3")
    with pytest.raises(loop.StopTraining):
        loop.train(job, tmp_path / "cut", on_progress=stop)
    assert loop.checkpoint_step(tmp_path / "cut" / "p3@42") == 50
    cut, whole = loop.train(job, tmp_path / "cut"), loop.train(job, tmp_path / "whole")
    assert cut.weights_path.read_bytes() == whole.weights_path.read_bytes()
    assert loop.checkpoint_step(tmp_path / "cut" / "p3@42") == 0


def test_a_student_waits_for_the_teacher_of_its_own_task_and_seed():
    (student,) = jobs("c4@7")
    variant = dataclasses.replace(student, task=parse_task("quadratic"))
    assert [str(sweeps.teacher_of(job)) for job in (student, variant)] == ["c3@7", "c3-quadratic@7"]
    assert str(sweeps.teacher_of(dataclasses.replace(student, teacher="p5@9"))) == "p5@9"
    assert sweeps.teacher_of(dataclasses.replace(student, teacher="somewhere/c3@42")) is None
    assert [sweeps.teacher_of(job) for job in jobs("c0", "c5")] == [None, None]


def test_settings_that_cannot_be(tmp_path):
    twice = jobs("c0") + jobs("c0", recipe=WILD)
    for arguments, settings, message in (
        (jobs("c0"), {"engine": "steam"}, "no engine named 'steam'; there are: local, ray"),
        (jobs("c0"), {"workers": 0}, "0 workers train nothing"),
        (twice, {}, "two different trainings are called c0"),
    ):
        with pytest.raises(ConfigError, match=message):
            sweep(arguments, tmp_path, **settings)
    assert sweep([], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_worker_starts_no_sweep(tmp_path, monkeypatch):
    """As it would where a script without a guard is imported again."""
    monkeypatch.setenv(INSIDE, "1")
    with pytest.raises(ConfigError, match="under if __name__ == '__main__'"):
        sweep(jobs("c0"), tmp_path)


@pytest.mark.parametrize(("text", "seeds"), [("1", (42,)), ("3", (42, 1337, 2024)), ("42,7", (42, 7)), ("9,", (9,)), ("7,7", (7,))])
def test_seeds(text, seeds):
    assert sweeps.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "9", "-1", "a", "1,b", ",", "-1,2"])
def test_seeds_that_are_none(text):
    with pytest.raises(ConfigError, match="--seeds"):
        sweeps.parse_seeds(text)


def test_cores_are_shared_and_never_oversubscribed(monkeypatch):
    for cores in (1, 2, 3, 8, 64):
        monkeypatch.setattr(sweeps, "usable_cores", lambda cores=cores: cores)
        for count in (1, 2, 13, 39):
            workers, threads = sweeps.share_cores(count)
            assert workers == min(count, cores)
            assert workers * threads <= cores
    assert sweeps.share_cores(13, workers=2) == (2, 32)
    assert sweeps.share_cores(13, threads=16) == (4, 16)
    assert sweeps.share_cores(13, device="cuda") == (1, 64)
    monkeypatch.setattr(sweeps, "usable_cores", lambda: 2)
    assert sweeps.share_cores(13, workers=5) == (5, 1)


def test_only_one_process_trains_a_run(tmp_path):
    (job,) = jobs("c0")
    folder = storage.ensure_directory(tmp_path / "c0@42")
    with loop.own(folder):
        started = time.monotonic()
        with pytest.raises(BusyError, match=r"another process is training .*c0@42"):
            loop.train(job, tmp_path)
        with pytest.raises(BusyError):
            loop.train(job, tmp_path, force=True, wait=0.2)
        assert time.monotonic() - started >= 0.2
        with pytest.raises(BusyError):
            work.discard(job, tmp_path)
        assert list(folder.iterdir()) == []
    loop.train(job, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c0@42"]


HOLD = """
import sys, time
from pathlib import Path
from wallprobe.store.storage import exclusive
with exclusive(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_no_stale_lock(tmp_path):
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError), storage.exclusive(path, "busy"):
            pass
        holder.kill()
        holder.wait()
        assert path.exists()
        with storage.exclusive(path, "busy", wait=1.0):
            pass
    assert not path.exists()


def test_a_worker_killed_in_the_middle_is_replaced_and_the_bytes_are_the_same(tmp_path):
    """Real workers, with a teacher, a kill -9, and an evaluation beside each run."""
    slow = dataclasses.replace(TINY, steps=400)
    engine, killed, seen = LocalEngine(2, 1), [], []

    def kill_once(update):
        seen.append(update)
        if not killed and str(update.name) == "c3" and update.step >= 100:
            (worker,) = [worker for worker in engine._workers if worker.task is not None and str(worker.task.job.name) == "c3"]
            os.kill(worker.process.pid, signal.SIGKILL)
            killed.append(update.step)

    chosen = jobs("c4", "c3", recipe=slow) + jobs("c0", recipe=dataclasses.replace(WILD, steps=400))
    outcomes = {str(outcome.name): outcome for outcome in sweep(chosen, tmp_path / "sweep", engine=engine, on_progress=kill_once)}
    assert [outcomes[name].state for name in ("c3", "c4", "c0")] == ["trained", "trained", "failed"]
    assert "diverged" in outcomes["c0"].error
    assert [update.error for update in seen if update.state == "queued" and update.error] == [
        "its worker died (killed by signal 9) and it is tried again"
    ]
    again = [update.step for update in seen if str(update.name) == "c3" and update.cross_entropy is not None]
    assert again[again.index(killed[0]) + 1] > killed[0] - TINY.checkpoint_every  # resumed, not begun anew
    assert [outcome.state for outcome in sweep(chosen[:2], tmp_path / "sweep", engine=Inline())] == ["skipped", "skipped"]
    for job in (chosen[1], chosen[0]):
        alone = loop.train(job, tmp_path / "alone")
        assert alone.weights_path.read_bytes() == (tmp_path / "sweep" / job.name.folder / runs.WEIGHTS).read_bytes()
        assert sorted(path.name for path in (tmp_path / "sweep" / job.name.folder).iterdir()) == ["eval", runs.MANIFEST, runs.WEIGHTS]


PARENT = """
import sys
from pathlib import Path
from wallprobe.training.wall import loop
from wallprobe.training.wall.conditions import get_condition
from wallprobe.training.engines import Task
from wallprobe.training.engines.local import LocalEngine
from wallprobe.training.wall.recipes import Recipe
recipe = Recipe(preset="tiny", n_layers=1, d_model=8, n_heads=2, steps=10**6, batch=4)
engine = LocalEngine(1, 1)
engine.submit(Task(loop.Job(get_condition("c0"), recipe), Path(sys.argv[1]), "cpu", False, 1, ("test",)))
while not engine.events(1.0):
    pass
print(engine._workers[0].process.pid, flush=True)
while True:
    engine.events(1.0)
"""


def test_workers_die_with_their_parent(tmp_path):
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        worker = int(parent.stdout.readline())
        with pytest.raises(BusyError), loop.own(tmp_path / "c0@42"):
            pass
        parent.kill()
    with loop.own(tmp_path / "c0@42", wait=10.0):
        pass
    deadline = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline and not _is_zombie(worker):
            os.kill(worker, 0)
            time.sleep(0.02)
        assert _is_zombie(worker)


def _is_zombie(process):
    """Dead, though nobody has asked for its exit code: where the new parent is no init."""
    try:
        with open(f"/proc/{process}/stat") as handle:
            return handle.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        raise ProcessLookupError from None
