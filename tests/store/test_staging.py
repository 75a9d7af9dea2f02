"""Replacing: old or new at every moment, with exchange and with a journal; temporaries swept once their process is gone."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wallprobe.errors import StoreError
from wallprobe.store import staging, storage
from wallprobe.store.staging import HIDDEN, JOURNAL, OLD, Owner


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def put(store, name, text):
    with storage.atomic_directory(store / name) as staged:
        storage.write_within(staged / "result.txt", text.encode())


@pytest.fixture(scope="module")
def dead():
    """A process of this machine that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    began = staging._started(ended.pid)
    ended.wait()
    return Owner(Owner.here().host, ended.pid, began or 0)


def named(store, owner, name, ending):
    (store / HIDDEN).mkdir(exist_ok=True)
    return store / HIDDEN / f"{name}~{owner.host}~{owner.pid}~{owner.started}~0123abcd.{ending}"


@pytest.mark.parametrize("way", ["exchange", "journal"])
def test_a_folder_takes_the_place_of_another_and_nothing_else_stays(tmp_path, monkeypatch, way):
    if way == "journal":
        monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    put(tmp_path, "a", "old")
    put(tmp_path, "a", "new")
    assert content(tmp_path) == {"a/result.txt": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_linux_exchanges_in_one_step(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / "was one").touch()
    assert staging.exchange(one, other)
    assert (other / "was one").exists()
    with pytest.raises(FileNotFoundError):
        staging.exchange(one, tmp_path / "nowhere")


def test_a_file_system_without_exchange_is_told_by_its_answer(tmp_path, monkeypatch):
    class Library:
        @staticmethod
        def renameat2(*_):
            return -1

        renamex_np = renameat2

    monkeypatch.setattr(staging.ctypes, "CDLL", lambda *_, **__: Library)
    monkeypatch.setattr(staging.ctypes, "get_errno", lambda: errno.EINVAL)
    assert not staging.exchange(tmp_path, tmp_path)


@pytest.mark.parametrize("refused", [1, 2])
def test_a_rename_that_fails_leaves_the_old_one_in_its_place(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    put(tmp_path, "a", "old")
    rename, calls = os.rename, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == refused:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(staging.os, "rename", failing)
    with pytest.raises(StoreError, match="disk is full"):
        put(tmp_path, "a", "new")
    assert content(tmp_path) == {"a/result.txt": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("moved", ["nothing", "old away", "both"])
def test_what_a_killed_process_had_begun_is_completed_by_whoever_reads(tmp_path, dead, moved):
    put(tmp_path, "a", "old")
    new, old = named(tmp_path, dead, "a", "tmp"), named(tmp_path, dead, "a", OLD)
    new.mkdir()
    (new / "result.txt").write_bytes(b"new")
    named(tmp_path, dead, "a", JOURNAL).write_text(json.dumps({"path": "a", "new": new.name, "old": old.name}))
    if moved != "nothing":
        (tmp_path / "a").rename(old)
    if moved == "both":
        new.rename(tmp_path / "a")
    staging.recover(tmp_path)
    assert content(tmp_path / "a") == {"result.txt": b"old" if moved == "nothing" else b"new"}
    put(tmp_path, "b", "another command writes")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("told", ["", "{", '{"path": 3}', "../elsewhere", "/etc/passwd", "a/../../b"])
def test_a_journal_is_not_believed_beyond_its_store(tmp_path, dead, told):
    store, outside = tmp_path / "store", tmp_path / "elsewhere"
    store.mkdir()
    new = named(store, dead, "a", "tmp")
    new.mkdir()
    text = told if told in ("", "{") or told.startswith("{") else json.dumps({"path": told, "new": new.name, "old": "../../elsewhere"})
    named(store, dead, "a", JOURNAL).write_text(text)
    staging.sweep(store)
    assert not outside.exists()
    assert not (store / HIDDEN).exists()


def test_temporaries_of_the_living_stay_and_of_the_dead_go(tmp_path, dead):
    here = Owner.here()
    another = Owner(here.host, here.pid, here.started - 1000)  # the same number, an earlier process
    elsewhere = Owner("another-machine", 1, 1)
    kept = [named(tmp_path, here, "a", "tmp"), named(tmp_path, elsewhere, "b", "tmp")]
    gone = [
        named(tmp_path, dead, "c", "tmp"),
        named(tmp_path, another, "d", OLD),
        named(tmp_path, Owner("another-machine", 2, 1), "e", "tmp"),
    ]
    for path in (*kept, *gone):
        path.write_bytes(b"half a file")
    strange = tmp_path / HIDDEN / "not ours"
    strange.touch()
    os.utime(gone[-1], (time.time() - 2 * staging.FOREIGN,) * 2)
    staging.sweep(tmp_path)
    assert sorted((tmp_path / HIDDEN).iterdir()) == sorted([*kept, strange])


def test_a_lock_that_nobody_holds_is_swept_and_one_that_is_held_stays(tmp_path):
    free, held = storage.lock_path(tmp_path / "free"), storage.lock_path(tmp_path / "held")
    with storage.exclusive(held, "busy"):
        free.touch()
        staging.sweep(tmp_path)
        assert held.exists()
        assert not free.exists()
    assert list(tmp_path.iterdir()) == []


def test_long_names_fit(tmp_path):
    storage.write_atomic(tmp_path / ("n" * 250), b"x")
    assert content(tmp_path) == {"n" * 250: b"x"}


def test_a_folder_is_discarded_in_one_step(tmp_path, monkeypatch):
    put(tmp_path, "a", "old")
    seen = []
    monkeypatch.setattr(storage, "remove", lambda path: seen.append((path.parent.name, sorted(content(path)))))
    storage.discard(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert seen == [(HIDDEN, ["result.txt"])]
    storage.discard(tmp_path / "never there")


def hammer(store, worker):
    for turn in range(30):
        storage.write_atomic(Path(store) / f"{worker}.txt", str(turn).encode())
        put(Path(store), "shared", f"{worker} {turn}")
        with storage.exclusive(storage.lock_path(Path(store) / "shared"), "busy", wait=30.0):
            pass


def test_several_processes_write_one_store_and_tidy_up_after_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=hammer, args=(str(tmp_path), worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.txt", "1.txt", "2.txt", "3.txt", "shared"]
    assert all((tmp_path / f"{worker}.txt").read_text() == "29" for worker in range(4))
