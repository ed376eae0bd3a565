"""Leases make one process work while the others wait, and nothing is wrong when they fail."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trtx.cache import lease
from trtx.cache.lease import Timing, evict, lease_path, read_lease, single_flight, take_lease
from trtx.cache.manifest import Manifest
from trtx.cache.store import Store

KEY = "ab" * 32
QUICK = Timing(heartbeat_s=0.02, silence_s=0.3, poll_s=0.01)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "cache")
    made.prepare()
    return made


def publish(store: Store, content: str = "made") -> None:
    with store.stage(KEY) as folder:
        (folder / "output" / "file").write_text(content)
        store.publish(folder, Manifest(KEY, "build/a", "build", {}, (), {}, {}))


class Other(threading.Thread):
    """Another process, as a thread: makes the entry when it is its turn, and tells what happened to it."""

    def __init__(self, store: Store, make: Callable[[], None] = lambda: None, timing: Timing = QUICK) -> None:
        super().__init__()
        self.said: list[str] = []
        self.waiting = threading.Event()
        self.outcome = ""
        self._store, self._make, self._timing = store, make, timing
        self.start()

    def _say(self, text: str) -> None:
        self.said.append(text)
        self.waiting.set()

    def run(self) -> None:
        with single_flight(self._store, KEY, {"step": "build/a"}, self._say, self._timing) as adopted:
            if adopted is not None:
                self.outcome = "adopted"
                return
            self._make()
            publish(self._store)
            self.outcome = "made"


def test_the_second_waits_says_for_whom_and_adopts(store: Store) -> None:
    with single_flight(store, KEY, {}, print, QUICK) as adopted:
        assert adopted is None
        other = Other(store)
        assert other.waiting.wait(10)
        publish(store)
    other.join(10)
    assert other.outcome == "adopted"
    assert f"waiting for process {os.getpid()} on " in other.said[0]
    assert list((store.root / "leases").iterdir()) == []


def test_when_the_first_fails_the_second_takes_its_turn(store: Store) -> None:
    with pytest.raises(RuntimeError), single_flight(store, KEY, {}, print, QUICK):
        other = Other(store)
        assert other.waiting.wait(10)
        raise RuntimeError
    other.join(10)
    assert other.outcome == "made"


def test_a_holder_that_shows_itself_is_waited_for_longer_than_the_silence(store: Store) -> None:
    held = take_lease(lease_path(store.root, KEY), {}, QUICK.heartbeat_s)
    assert held is not None
    other = Other(store)
    other.join(3 * QUICK.silence_s)
    assert other.is_alive()
    held.release()
    other.join(10)
    assert other.outcome == "made"


def write_foreign(store: Store, **changes: object) -> Path:
    """A lease of a process on another host, which cannot be judged from here."""
    path = lease_path(store.root, KEY)
    path.write_text(json.dumps({"host": "elsewhere", "boot": "b", "pid": 1, "start": "1"} | changes))
    return path


def test_a_silent_holder_on_another_host_loses_its_lease(store: Store) -> None:
    write_foreign(store)
    began = time.monotonic()
    other = Other(store)
    other.join(10)
    assert other.outcome == "made"
    assert time.monotonic() - began >= QUICK.silence_s
    assert any("process 1 on elsewhere was making this and has been silent" in line for line in other.said)


@pytest.mark.parametrize("skew_s", [-1e6, 1e6])
def test_clocks_of_hosts_may_disagree(store: Store, skew_s: float) -> None:
    path = write_foreign(store)
    other = Other(store, timing=Timing(0.02, 0.6, 0.01))
    for beat in range(12):  # A holder far in the past or the future that shows itself for twice the silence.
        moment = time.time() + skew_s + beat
        os.utime(path, (moment, moment))
        time.sleep(0.1)
    assert other.is_alive()
    path.unlink()
    other.join(10)
    assert other.outcome == "made"


def test_a_holder_of_this_host_that_is_gone_loses_its_lease_at_once(store: Store) -> None:
    script = (
        "import os, sys; from pathlib import Path; from trtx.cache.lease import take_lease\n"
        "take_lease(Path(sys.argv[1]), {}); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(lease_path(store.root, KEY))], check=False)
    assert lease_path(store.root, KEY).exists()
    other = Other(store, timing=Timing(silence_s=1e9))
    other.join(10)
    assert other.outcome == "made"
    assert "is gone: taking over" in other.said[0]


def test_a_lease_that_is_still_being_written_is_judged_by_silence_alone(store: Store) -> None:
    lease_path(store.root, KEY).write_text("{")
    other = Other(store)
    other.join(10)
    assert other.outcome == "made"
    assert "another process was making this and has been silent" in other.said[-1]


def test_a_lease_that_changed_hands_is_not_taken_by_who_judged_the_one_before(store: Store) -> None:
    path = write_foreign(store)
    judged = read_lease(path)
    assert judged is not None
    path.rename(path.with_suffix(".old"))  # Keeps its inode from being used again.
    held = take_lease(path, {"step": "new"})
    assert held is not None
    evict(path, judged)
    now = read_lease(path)
    assert now is not None and now.note["step"] == "new"
    assert [entry.name for entry in path.parent.glob(".*")] == []
    held.release()
    assert not path.exists()


def test_a_heartbeat_between_judging_and_taking_saves_the_lease(store: Store) -> None:
    path = write_foreign(store)
    judged = read_lease(path)
    assert judged is not None
    os.utime(path, (1, 1))
    evict(path, judged)
    assert path.exists()


def test_a_holder_that_lost_its_lease_never_deletes_or_refreshes_the_next_one(store: Store) -> None:
    path = lease_path(store.root, KEY)
    first = take_lease(path, {}, 0.01)
    judged = read_lease(path)
    assert first is not None and judged is not None
    path.rename(path.with_suffix(".stolen"))
    write_foreign(store)
    before = path.stat().st_mtime_ns
    time.sleep(0.05)
    first.release()
    assert path.stat().st_mtime_ns == before


@contextmanager
def failing_open(number: int) -> Iterator[None]:
    original = os.open

    def fail(path: object, flags: int, *arguments: object, **named: object) -> int:
        if "/leases/" in str(path):
            raise OSError(number, os.strerror(number))
        return original(path, flags, *arguments, **named)  # type: ignore[arg-type]

    lease.os.open = fail  # type: ignore[assignment]
    try:
        yield
    finally:
        lease.os.open = original


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO, errno.ENOENT])
def test_where_leases_fail_both_make_the_entry_and_one_adopts(store: Store, number: int) -> None:
    both = threading.Barrier(2)
    with failing_open(number):
        others = [Other(store, lambda: both.wait(10) and None) for _ in range(2)]
        for other in others:
            other.join(10)
    assert [other.outcome for other in others] == ["made", "made"]
    assert all("going on without" in other.said[0] for other in others)
    assert store.find(KEY).manifest is not None
    assert len(store.keys()) == 1
    assert list((store.root / "quarantine").iterdir()) == []


def test_a_corrupt_entry_is_made_anew_by_one_and_read_once_by_who_waits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "first")
    (store.output(KEY) / "file").chmod(0o644)
    (store.output(KEY) / "file").write_text("wrong")
    looked: list[str] = []
    find = Store.find
    monkeypatch.setattr(Store, "find", lambda self, key: looked.append(key) or find(self, key))
    with single_flight(store, KEY, {}, print, QUICK) as adopted:
        assert adopted is None
        looked.clear()
        other = Other(store)
        assert other.waiting.wait(10)
        time.sleep(0.1)
        assert len(looked) == 1
        publish(store)
    other.join(10)
    assert other.outcome == "adopted"


def test_a_waiter_told_to_stop_leaves_at_once_and_the_lease_stays(store: Store) -> None:
    held = take_lease(lease_path(store.root, KEY), {})
    assert held is not None
    script = (
        "import signal, sys; from pathlib import Path; from trtx.cache.lease import single_flight\n"
        "from trtx.cache.store import Store\n"
        "signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))\n"
        "try:\n with single_flight(Store(Path(sys.argv[1])), sys.argv[2], {}, lambda t: print(t, flush=True)): pass\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(store.root), KEY], stdout=subprocess.PIPE) as waiter:
        assert waiter.stdout is not None and b"waiting for" in waiter.stdout.readline()
        waiter.send_signal(signal.SIGTERM)
        assert waiter.wait(10) == 130
    assert read_lease(held.path) is not None
    held.release()
