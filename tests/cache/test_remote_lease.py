"""Leases on a remote: one machine has its turn, the others learn who, and silence is taken over."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.remotes import Place, closed_port, make_entry, push, writable

from trtx.cache.remote_lease import Leases, Turn, lease_name
from trtx.cache.store import Store
from trtx.files import canonical_json

KEY = "ab" * 32


@pytest.fixture
def machines(place: Place) -> Iterator[list[Leases]]:
    made = [Leases(writable(place.url, place.endpoint), heartbeat_s=0.02, silence_s=0.3) for _ in range(4)]
    yield made
    for leases in made:
        leases.close()


def wait_for_turn(leases: Leases, turn: Turn, key: str = KEY) -> float:
    """Ask until the answer is the expected one; returns how long that took in seconds."""
    began = time.monotonic()
    while leases.claim(key).turn is not turn:
        assert time.monotonic() - began < 20
        threading.Event().wait(0.02)
    return time.monotonic() - began


def test_one_of_many_machines_has_its_turn(machines: list[Leases]) -> None:
    with ThreadPoolExecutor(4) as pool:
        turns = list(pool.map(lambda leases: leases.claim(KEY).turn, machines))
    assert turns.count(Turn.OURS) == 1
    assert turns.count(Turn.THEIRS) == 3


def test_others_learn_whose_turn_it_is(machines: list[Leases]) -> None:
    import socket

    machines[0].claim(KEY)
    claim = machines[1].claim(KEY)
    assert (claim.turn, claim.owner) == (Turn.THEIRS, socket.gethostname())
    assert machines[0].claim(KEY).turn is not Turn.THEIRS


def test_a_lease_that_is_renewed_is_not_taken_over(machines: list[Leases]) -> None:
    machines[0].claim(KEY)
    deadline = time.monotonic() + 0.8
    while time.monotonic() < deadline:
        assert machines[1].claim(KEY).turn is Turn.THEIRS
        threading.Event().wait(0.05)


def leave_a_lease(place: Place, **owner: Any) -> None:
    """The lease of a machine that died."""
    note = {"host": "far-away", "boot": "x", "pid": 1, "start": "1"} | owner
    body = {"key": KEY, "token": "gone", "beat": 3, "owner": note}
    place.blobs().write(lease_name(KEY), canonical_json(body))


def test_a_silent_lease_is_taken_over_after_the_stated_time(place: Place, machines: list[Leases]) -> None:
    leave_a_lease(place)
    assert machines[0].claim(KEY).owner == "far-away"
    assert 0.25 < wait_for_turn(machines[0], Turn.OURS) < 10


def test_a_lease_of_a_process_of_this_host_that_is_gone_is_taken_over_at_once(
    place: Place, machines: list[Leases]
) -> None:
    import socket

    leave_a_lease(place, host=socket.gethostname())
    assert machines[0].claim(KEY).turn is Turn.OURS


@pytest.mark.parametrize("content", [b"", b"garbage", b"[]", b"null", b'{"owner": 5}', b"\xff" * 5000])
def test_garbage_in_the_place_of_a_lease_is_taken_over(place: Place, machines: list[Leases], content: bytes) -> None:
    place.blobs().write(lease_name(KEY), content)
    wait_for_turn(machines[0], Turn.OURS)


def test_a_lease_that_is_given_back_is_free(machines: list[Leases]) -> None:
    machines[0].claim(KEY)
    machines[0].release(KEY)
    assert machines[1].claim(KEY).turn is Turn.OURS


def test_leases_are_given_back_at_the_end(machines: list[Leases]) -> None:
    machines[0].claim(KEY)
    machines[0].close()
    assert machines[1].claim(KEY).turn is Turn.OURS


def test_a_lease_that_another_took_over_is_left_to_it(place: Place, machines: list[Leases]) -> None:
    machines[0].claim(KEY)
    leave_a_lease(place)
    machines[0].release(KEY)
    text = place.blobs().read(lease_name(KEY), 4096)
    assert text is not None and json.loads(text)["token"] == "gone"


def test_an_entry_that_was_made_meanwhile_is_found_and_the_lease_given_back(
    place: Place, machines: list[Leases], store: Store
) -> None:
    sent = make_entry(store)
    push(writable(place.url, place.endpoint), sent, store)
    claim = machines[0].claim(sent.key)
    assert claim.turn is Turn.MADE
    assert claim.offer is not None and claim.offer.manifest == sent
    assert place.blobs().read(lease_name(sent.key), 4096) is None


def test_an_entry_that_was_refused_does_not_count_as_made(place: Place, machines: list[Leases], store: Store) -> None:
    sent = make_entry(store)
    remote = writable(place.url, place.endpoint)
    push(remote, sent, store)
    assert machines[0].claim(sent.key, remote.find(sent.key)).turn is Turn.OURS


def test_a_remote_that_is_down_leaves_the_turn_open(credentials: None) -> None:
    leases = Leases(writable("s3://bucket/x", f"http://127.0.0.1:{closed_port()}"))
    assert leases.claim(KEY).turn is Turn.UNKNOWN
    leases.release(KEY)
    leases.close()
