"""What a run does with remotes, in threads of the driver: take entries, make sure of its turn, put entries there.

Workers never see a remote, and so no credentials. Nothing here fails a build: what does not work is an event that says
so, and the build goes on without it. Without remotes every method is a no-op.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtx.cache.manifest import Manifest
from trtx.cache.store import Store
from trtx.errors import TrtxError

if TYPE_CHECKING:
    from trtx.cache.background import DaemonPool
    from trtx.cache.remote_lease import Claim, Leases
    from trtx.cache.remote_push import WritableRemote
    from trtx.plan.remotes import Hit, Remotes

# Entries on their way at once, each way; each takes up to trtx.cache.remote.WINDOW pieces of memory.
PULLS = 2
PUSHES = 1
CLAIMS = 2
# How often a step that another machine makes is looked at: a quarter of the time waited so far, within these bounds.
MIN_POLL_S, MAX_POLL_S = 0.5, 5.0
# How long one is waited for, while its maker gives signs of life, before it is made here all the same.
MAX_WAIT_S = 4 * 3600.0
# How long threads may take to clean up after an interruption.
LEAVE_S = 3.0


@dataclass(frozen=True)
class Pulled:
    """An entry was taken (`manifest`), or not (`why`): `trouble` blames the whole remote, `error` this machine."""

    step: str
    hit: Hit
    manifest: Manifest | None = None
    why: str = ""
    trouble: bool = False
    error: TrtxError | None = None


@dataclass(frozen=True)
class Claimed:
    """Whose turn a step is."""

    step: str
    claim: Claim


@dataclass(frozen=True)
class Pushed:
    """An entry was offered to a remote; `why` it did not get there."""

    step: str
    remote: str
    why: str = ""


Event = Pulled | Claimed | Pushed


class Exchange:
    """A run's traffic with the remotes. Only the thread that made it calls its methods."""

    def __init__(self, store: Store, remotes: Remotes | None) -> None:
        self._store = store
        self._remotes = remotes
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        # By step: bytes done and bytes in all.
        self.pulling: dict[str, tuple[int, int]] = {}
        self.sending: dict[str, tuple[int, int]] = {}
        self._open_pushes: dict[str, int] = {}
        self._asking: set[str] = set()
        self._waiting: dict[str, tuple[float, float]] = {}  # by step: since when, when it is looked at again
        self._turns: set[str] = set()
        self._keys: dict[str, str] = {}
        self._leases: Leases | None = None
        self._pools: dict[str, DaemonPool] = {}
        if remotes is not None and remotes.writable:
            from trtx.cache.remote_lease import Leases

            self._leases = Leases(remotes.writable[0])

    def is_busy(self) -> bool:
        """Whether an event will come that the run has to wait for; pushes do not count."""
        return bool(self.pulling or self._asking)

    def collect(self, timeout_s: float) -> list[Event]:
        """What happened; waits for the first event as long as the time allows."""
        events: list[Event] = []
        try:
            events.append(self._events.get(timeout=timeout_s) if timeout_s else self._events.get_nowait())
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            pass
        for event in events:
            self._settle(event)
        return events

    def _settle(self, event: Event) -> None:
        if isinstance(event, Pulled):
            self.pulling.pop(event.step, None)
        elif isinstance(event, Pushed):
            self._open_pushes[event.step] -= 1
            if not self._open_pushes[event.step]:
                del self._open_pushes[event.step]
                self.sending.pop(event.step, None)
                self.give_back(event.step)
        else:
            self._settle_claim(event)

    def _settle_claim(self, event: Claimed) -> None:
        from trtx.cache.remote_lease import Turn

        self._asking.discard(event.step)
        now = time.monotonic()
        since, _ = self._waiting.pop(event.step, (now, now))
        if event.claim.turn is Turn.THEIRS and now - since < MAX_WAIT_S:
            self._waiting[event.step] = (since, now + min(MAX_POLL_S, max(MIN_POLL_S, (now - since) / 4)))
        elif event.claim.turn is not Turn.MADE:
            self._turns.add(event.step)

    def pull(self, step: str, hit: Hit) -> None:
        """Begin to take an entry from a remote."""
        self.pulling[step] = (0, hit.offer.manifest.total_bytes)

        def run() -> None:
            def progress(done: int, total: int) -> None:
                if step in self.pulling:
                    self.pulling[step] = (done, total)

            self._events.put(self._try_pull(step, hit, progress))

        self._pool("pull", PULLS).submit(run)

    def _try_pull(self, step: str, hit: Hit, progress: Callable[[int, int], None]) -> Pulled:
        from concurrent.futures import CancelledError

        from trtx.cache.foreign import EntryRefused
        from trtx.cache.remote import RemoteTrouble

        try:
            return Pulled(step, hit, hit.remote.pull(hit.offer, self._store, progress, self._cancelled))
        except EntryRefused as error:
            return Pulled(step, hit, why=str(error))
        except (RemoteTrouble, CancelledError) as error:
            return Pulled(step, hit, why=str(error), trouble=True)
        except TrtxError as error:
            return Pulled(step, hit, why=error.what, error=error)
        except Exception as error:  # noqa: BLE001  A build does not fail because of a remote.
            return Pulled(step, hit, why=f"{type(error).__name__}: {error}")

    def may_start(self, step: str, key: str) -> bool:
        """Whether it is this machine's turn to make an entry; asks when that is not known yet."""
        if self._leases is None or step in self._turns:
            return True
        if step in self._asking or time.monotonic() < self._waiting.get(step, (0.0, 0.0))[1]:
            return False
        self._asking.add(step)
        self._keys[step] = key
        leases = self._leases
        bad = self._remotes.distrusted(leases.remote, key) if self._remotes else None
        self._pool("claim", CLAIMS).submit(lambda: self._events.put(Claimed(step, leases.claim(key, bad))))
        return False

    def give_back(self, step: str) -> None:
        """Let others make a step: it is done, or it failed here."""
        key = self._keys.get(step)
        if self._leases is not None and key is not None:
            leases = self._leases
            self._pool("claim", CLAIMS).submit(lambda: leases.release(key))

    def push(self, step: str, manifest: Manifest) -> None:
        """Begin to offer a new entry to every remote that takes entries."""
        writable = self._remotes.writable if self._remotes is not None else []
        if not writable:
            return
        self.sending[step] = (0, manifest.total_bytes)
        self._open_pushes[step] = len(writable)
        for remote in writable:
            self._pool("push", PUSHES).submit(
                lambda remote=remote: self._events.put(self._try_push(step, manifest, remote))  # type: ignore[misc]
            )

    def _try_push(self, step: str, manifest: Manifest, remote: WritableRemote) -> Pushed:
        def progress(done: int, total: int) -> None:
            self.sending[step] = (done, total)

        replace = self._remotes is not None and self._remotes.is_bad(remote, manifest.key)
        try:
            remote.push(manifest, self._store, progress, self._cancelled, replace=replace)
        except Exception as error:  # noqa: BLE001  A build does not fail because of a remote.
            return Pushed(step, remote.name, str(error) or type(error).__name__)
        return Pushed(step, remote.name)

    def close(self, *, interrupted: bool) -> None:
        """End: what is on its way is dropped (nothing of it is visible anywhere), and other machines get their turn."""
        self._cancelled.set()
        if interrupted:
            ends = time.monotonic() + LEAVE_S
            while self.pulling and time.monotonic() < ends:
                self.collect(0.1)
        if self._leases is not None:
            self._pool("close", 1).submit(self._leases.close).exception(LEAVE_S + self._leases.remote.spec.timeout_s)

    def _pool(self, name: str, size: int) -> DaemonPool:
        from trtx.cache.background import DaemonPool

        if name not in self._pools:
            self._pools[name] = DaemonPool(size, name)
        return self._pools[name]
