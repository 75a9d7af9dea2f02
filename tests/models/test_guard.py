"""What is refused while a model is read, on which threads, and that nothing of it is left when the reading is over."""

import io
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub.constants
import pytest

from wallprobe.errors import CheckpointError
from wallprobe.models.guard import reading

PICKLE = b"cos\nsystem\n(S'true'\ntR."
TRIED: dict[str, tuple[Callable[[], object], str]] = {
    "process": (lambda: subprocess.run([sys.executable, "-c", ""], check=True), "start a process"),
    "shell": (lambda: os.system("true"), "start a process (true)"),
    "exec": (lambda: os.execv("/nonexistent", ["x"]), "start a process"),
    "spawn": (lambda: os.posix_spawn("/bin/true", ["true"], {}), "start a process (/bin/true)"),
    "fork": (os.fork, "start a process"),
    "address": (lambda: socket.getaddrinfo("localhost", 1), "use the network (localhost, 1"),
    "connection": (lambda: socket.create_connection(("127.0.0.1", 1)), "use the network"),
    "question": (lambda: input("run it? "), "ask a question on the terminal"),
    "terminal": (lambda: open("/dev/tty"), "ask a question on the terminal"),  # noqa: SIM115
    "pickle": (lambda: pickle.loads(PICKLE), "unpickle os.system"),
}


@pytest.mark.parametrize("kind", TRIED)
@pytest.mark.parametrize("swallowed", [False, True])
def test_refused_also_where_a_library_swallows_it(kind: str, swallowed: bool) -> None:
    do, words = TRIED[kind]

    def block() -> None:
        with reading("some/one"):
            try:
                do()
            except Exception:
                if not swallowed:
                    raise

    with pytest.raises(CheckpointError) as caught:
        block()
    assert str(caught.value).startswith(f"reading some/one would {words}")


def test_code_of_the_folder_and_of_transformers_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "evil_one.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')")
    (tmp_path / "transformers_modules").mkdir()
    same = (tmp_path / "model" / "evil_one.py").read_text()
    (tmp_path / "transformers_modules" / "evil_two.py").write_text(same)
    (tmp_path / "model" / "site-packages").mkdir()
    (tmp_path / "model" / "site-packages" / "installed_three.py").write_text("VALUE = 3")
    for place in ("model", ".", "model/site-packages"):
        monkeypatch.syspath_prepend(str(tmp_path / place))
    with pytest.raises(CheckpointError, match=r"would run .*evil_one.py"), reading("model", tmp_path / "model"):
        __import__("evil_one")
    with pytest.raises(CheckpointError, match="would import transformers_modules"), reading("model", tmp_path / "model"):
        __import__("transformers_modules.evil_two")
    with reading("model", tmp_path / "model"):
        assert __import__("installed_three").VALUE == 3
        monkeypatch.chdir(tmp_path / "model")
        assert namedtuple("Pair", "a b")(1, 2).a == 1  # compiled from <string>, here, and no file
    assert not (tmp_path / "RAN").exists()


def test_nothing_is_left_of_it() -> None:
    before, hub = sys.stdin, huggingface_hub.constants.HF_HUB_OFFLINE
    with reading("one"):
        assert sys.stdin.read() == ""
        assert huggingface_hub.constants.HF_HUB_OFFLINE is True
        with reading("two"):
            pass
        assert sys.stdin is not before
    assert sys.stdin is before
    assert bool(huggingface_hub.constants.HF_HUB_OFFLINE) is bool(hub)
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert pickle.loads(b"cbuiltins\nlen\n.") is len
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))


def test_threads_of_the_reading_are_held_to_it_and_others_are_not() -> None:
    free, done = threading.Event(), threading.Event()
    codes: list[int] = []

    def other() -> None:
        free.wait(20)
        codes.append(subprocess.run([sys.executable, "-c", ""], check=False).returncode)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()

    def block() -> None:
        with reading("one"), ThreadPoolExecutor(1) as pool:
            free.set()
            assert done.wait(20)
            pool.submit(lambda: pool.submit(os.system, "true")).result().exception()

    with pytest.raises(CheckpointError, match=r"reading one would start a process \(true\)"):
        block()
    thread.join()
    assert codes == [0]


def test_a_pool_that_outlives_its_reading_is_free_until_the_next() -> None:
    with ThreadPoolExecutor(1) as pool:
        with reading("one"):
            pool.submit(int).result()
        assert pool.submit(os.system, "true").result() == 0
        with pytest.raises(CheckpointError, match="reading two would"), reading("two"):
            pool.submit(os.system, "true").exception()


def test_two_threads_read_at_once() -> None:
    meet = threading.Barrier(2)
    found: dict[str, str] = {}

    def read(name: str) -> None:
        try:
            with reading(name):
                meet.wait(20)
                os.system(name)
        except CheckpointError as error:
            found[name] = str(error)

    threads = [threading.Thread(target=read, args=(name,)) for name in ("one", "two")]
    before, hub = sys.stdin, huggingface_hub.constants.HF_HUB_OFFLINE
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(f"reading {name} would start a process ({name})" in found[name] for name in ("one", "two"))
    assert sys.stdin is before
    assert bool(huggingface_hub.constants.HF_HUB_OFFLINE) is bool(hub)


def test_fetching_may_use_the_network_and_nothing_else() -> None:
    with reading("some/one", network=True):
        socket.getaddrinfo("127.0.0.1", 1)
    with pytest.raises(CheckpointError, match="would start a process"), reading("some/one", network=True):
        os.system("true")


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(KeyError), reading("one"):
        {}["a"]
    with reading("one"):
        multiprocessing.current_process()
        io.open(os.devnull).close()  # noqa: UP020
