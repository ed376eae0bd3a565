"""Who makes an entry right now, noted on the remote, so that two machines with caches of their own build it once.

A lease is an object created only if there is none, then read back (a server that ignores the condition tells the truth
there). Its owner renews it every HEARTBEAT_S; one that did not change for SILENCE_S, by the clock of whoever looks, is
taken over. Nothing depends on leases being right: when they fail, both machines build and one entry is kept.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from dataclasses import dataclass
from enum import Enum
from typing import Any

from trtx.cache.blobs import Blobs
from trtx.cache.foreign import EntryRefused, plain
from trtx.cache.remote import Offer, RemoteTrouble
from trtx.cache.remote_push import WritableRemote
from trtx.files import canonical_json, parse_json
from trtx.processes import describe_this_process, is_gone

HEARTBEAT_S = 20.0
SILENCE_S = 120.0
MAX_LEASE_BYTES = 4096


class Turn(Enum):
    """What came of asking for a lease."""

    OURS = "ours"
    THEIRS = "theirs"
    MADE = "made"  # The entry is on the remote.
    UNKNOWN = "unknown"  # The remote does not tell: go on without it.


@dataclass(frozen=True)
class Claim:
    """The answer to `Leases.claim`: `owner` is the host that has the lease, `offer` the entry that is there."""

    turn: Turn
    owner: str = ""
    offer: Offer | None = None


def lease_name(key: str) -> str:
    return f"v1/leases/{key[:2]}/{key}.json"


class Leases:
    """This process's leases on one remote."""

    def __init__(
        self, remote: WritableRemote, *, heartbeat_s: float = HEARTBEAT_S, silence_s: float = SILENCE_S
    ) -> None:
        self._remote = remote
        self._heartbeat_s = heartbeat_s
        self._silence_s = silence_s
        self._token = uuid.uuid4().hex
        self._held: dict[str, int] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._heart: threading.Thread | None = None

    @property
    def remote(self) -> WritableRemote:
        return self._remote

    def claim(self, key: str, bad: Offer | None = None) -> Claim:
        """Take the lease of a key, unless another has it or the entry was made meanwhile. Never raises.

        `bad` is an entry of this key that was refused: only another one counts.
        """
        try:
            note = self._note(key, 0)
            turn, owner = self._remote.write_object(lambda blobs: self._take(blobs, key, note))
            try:
                offer = self._remote.find(key)
            except EntryRefused:
                offer = None  # Whoever has the lease replaces it.
            if offer is not None and offer != bad:
                if turn is Turn.OURS:
                    self._forget(key)
                return Claim(Turn.MADE, offer=offer)
        except Exception:  # noqa: BLE001  Without an answer the run would wait for ever.
            return Claim(Turn.UNKNOWN)
        if turn is Turn.OURS:
            self._hold(key)
        return Claim(turn, owner)

    def _take(self, blobs: Blobs, key: str, note: bytes) -> tuple[Turn, str]:
        name = lease_name(key)
        for _ in range(2):
            blobs.create(name, note)
            current = blobs.read(name, MAX_LEASE_BYTES)
            if current is None:
                continue
            if self._is_ours(current):
                return Turn.OURS, ""
            if not self._is_abandoned(key, current):
                return Turn.THEIRS, _host_of(current)
            blobs.remove(name)
        return Turn.THEIRS, "another machine"

    def _is_ours(self, current: bytes) -> bool:
        try:
            return bool(_parse(current).get("token") == self._token)
        except ValueError:
            return False

    def _is_abandoned(self, key: str, current: bytes) -> bool:
        """Whether a lease is silent for too long, or of a process of this host that is gone."""
        first, since = self._seen.get(key, (b"", 0.0))
        if first != current:
            self._seen[key] = (current, time.monotonic())
            with contextlib.suppress(ValueError, KeyError, TypeError):
                return is_gone(_parse(current)["owner"])
            return False
        return time.monotonic() - since > self._silence_s

    def _note(self, key: str, beat: int) -> bytes:
        return canonical_json({"key": key, "token": self._token, "beat": beat, "owner": describe_this_process()})

    def _hold(self, key: str) -> None:
        with self._lock:
            self._held.setdefault(key, 0)
            if self._heart is None:
                self._heart = threading.Thread(target=self._beat, name="remote-leases", daemon=True)
                self._heart.start()

    def _beat(self) -> None:
        """Renew what is held; a lease that another took over is left to it."""
        while not self._closed.wait(self._heartbeat_s):
            for key in list(self._held):
                with contextlib.suppress(RemoteTrouble):
                    self._remote.write_object(lambda blobs, key=key: self._renew(blobs, key))  # type: ignore[misc]

    def _renew(self, blobs: Blobs, key: str) -> None:
        with self._lock:
            beat = self._held.get(key)
            if beat is None:
                return
            if blobs.read(lease_name(key), MAX_LEASE_BYTES) == self._note(key, beat):
                blobs.write(lease_name(key), self._note(key, beat + 1))
                self._held[key] = beat + 1

    def release(self, key: str) -> None:
        """Give a lease back; none is no error. Never raises."""
        if key in self._held:
            self._forget(key)

    def _forget(self, key: str) -> None:
        def remove(blobs: Blobs) -> None:
            with self._lock:
                self._held.pop(key, None)
                current = blobs.read(lease_name(key), MAX_LEASE_BYTES)
                if current is not None and self._is_ours(current):
                    blobs.remove(lease_name(key))

        with contextlib.suppress(RemoteTrouble):
            self._remote.write_object(remove)

    def close(self) -> None:
        """Give everything back, as far as the remote can be reached."""
        self._closed.set()
        for key in list(self._held):
            self.release(key)


def _parse(text: bytes) -> dict[str, Any]:
    body = parse_json(text)
    return body if isinstance(body, dict) else {}


def _host_of(text: bytes) -> str:
    try:
        return plain(_parse(text)["owner"]["host"])
    except (ValueError, KeyError, TypeError):
        return "another machine"
