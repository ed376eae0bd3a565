"""Remotes that are down, slow, unusable or interrupted: a stated deadline, one reason, and uploads that go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from support.http_threads import serve_handler
from support.remotes import (
    BUCKET,
    CREDENTIALS,
    Place,
    Proxy,
    S3Server,
    closed_port,
    environment_with,
    ignore_progress,
    make_entry,
    proxy,
    push,
    writable,
)

from trtx.cache import remote as remote_module
from trtx.cache.blobs import BlobDamaged, DriverBlobs, FolderBlobs
from trtx.cache.foreign import EntryRefused
from trtx.cache.remote import Remote, RemoteSpec, RemoteTrouble, blob_name
from trtx.cache.store import Store

KEY = "ab" * 32


@pytest.fixture
def proxied(s3: S3Server, s3_place: Place) -> Iterator[Proxy]:
    with proxy(s3.endpoint) as made:
        yield made


def test_a_remote_that_is_down_is_given_up_at_once_and_left_alone(credentials: None) -> None:
    remote = writable("s3://bucket/x", f"http://127.0.0.1:{closed_port()}")
    began = time.monotonic()
    with pytest.raises(RemoteTrouble, match="connect"):
        remote.find(KEY)
    assert time.monotonic() - began < 5
    began = time.monotonic()
    with pytest.raises(RemoteTrouble):
        remote.find(KEY)
    assert time.monotonic() - began < 0.05


def test_a_remote_that_failed_is_tried_again_later(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = writable("s3://bucket/x", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(RemoteTrouble):
        remote.find(KEY)
    assert remote.trouble()
    monkeypatch.setattr(remote_module, "RECOVERY_S", 0.0)
    assert remote.trouble() is None


def test_a_remote_that_stalls_is_given_up_at_its_deadline(proxied: Proxy, s3_place: Place) -> None:
    proxied.stall.set()
    remote = writable(s3_place.url, proxied.endpoint, timeout_s=0.3)
    began = time.monotonic()
    with pytest.raises(RemoteTrouble, match="did not answer"):
        remote.find_many([KEY, "cd" * 32])
    assert time.monotonic() - began < 3


def test_a_pull_that_stalls_half_way_is_given_up(
    proxied: Proxy, s3_place: Place, store: Store, other_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = make_entry(store)
    push(writable(s3_place.url, s3_place.endpoint), sent, store)
    monkeypatch.setattr(remote_module, "MIN_BYTES_PER_S", 1 << 30)
    offer = writable(s3_place.url, s3_place.endpoint).find(sent.key)
    assert offer is not None
    proxied.stall.set()
    remote = writable(s3_place.url, proxied.endpoint, timeout_s=0.3)
    with pytest.raises(RemoteTrouble, match="did not answer"):
        remote.pull(offer, other_store, ignore_progress, threading.Event())
    assert list((other_store.root / "tmp").iterdir()) == []


def test_a_line_that_flips_bits_is_noticed(proxied: Proxy, s3_place: Place, store: Store, other_store: Store) -> None:
    sent = make_entry(store, files={"x": b"engine" * 1000})
    push(writable(s3_place.url, s3_place.endpoint), sent, store)
    remote = writable(s3_place.url, proxied.endpoint)
    offer = remote.find(sent.key)
    assert offer is not None
    proxied.spoil = lambda data: data.replace(b"engineengine", b"enginfengine")
    with pytest.raises((EntryRefused, RemoteTrouble)):
        remote.pull(offer, other_store, ignore_progress, threading.Event())
    assert other_store.find(sent.key).manifest is None


def test_what_the_disk_made_of_a_file_does_not_become_an_entry(place: Place, store: Store, other_store: Store) -> None:
    sent = make_entry(store, files={"a": b"first", "b": b"second"})
    remote = writable(place.url, place.endpoint)
    push(remote, sent, store)
    offer = remote.find(sent.key)
    assert offer is not None

    def tamper(done: int, total: int) -> None:
        if done == total:
            [written] = (other_store.root / "tmp").glob("*/output/a")
            written.write_bytes(b"worst")

    with pytest.raises(EntryRefused, match="on the disk"):
        remote.pull(offer, other_store, tamper, threading.Event())
    assert other_store.find(sent.key).manifest is None


@contextmanager
def portal() -> Iterator[str]:
    """A server that answers everything with the same page, as the login pages of some networks do."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            page = b"<html><body>Please log in, \x1b[31mnow\x1b[0m</body></html>"
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(page)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with serve_handler(Handler) as address:
        yield f"http://{address}"


def test_a_page_instead_of_a_server_is_neither_believed_nor_written_to(credentials: None, store: Store) -> None:
    with portal() as endpoint:
        remote = writable("s3://bucket/x", endpoint)
        with pytest.raises(EntryRefused, match="not an entry"):
            remote.find(KEY)
        with pytest.raises(RemoteTrouble):
            push(remote, make_entry(store), store)


def test_a_bucket_that_does_not_exist_is_a_reason(s3: S3Server, credentials: None) -> None:
    with pytest.raises(RemoteTrouble, match="the bucket does not exist"):
        writable("s3://no-such-bucket/x", s3.endpoint).find(KEY)


def test_a_share_that_is_not_mounted_is_a_reason(tmp_path: Path) -> None:
    remote = Remote(RemoteSpec("nfs", f"file://{tmp_path}/not-mounted"))
    with pytest.raises(RemoteTrouble, match="there is no folder"):
        remote.find(KEY)


def test_a_driver_that_is_not_installed_is_a_reason() -> None:
    with pytest.raises(RemoteTrouble, match="not installed"):
        writable("adl://container/x").find(KEY)


def test_missing_credentials_are_a_reason(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(RemoteTrouble, match="no-such-profile"):
        writable(f"s3://{BUCKET}/x", s3.endpoint, timeout_s=9.5).find(KEY)


def test_a_share_that_refuses_writing_can_still_be_read(tmp_path: Path, store: Store) -> None:
    place = Place(f"file://{tmp_path}/share")
    sent = make_entry(store, 1)
    push(writable(place.url), sent, store)
    remote = writable(place.url)
    (tmp_path / "share/v1/blobs").rename(tmp_path / "aside")
    (tmp_path / "share/v1/blobs").write_text("a file where a folder should be")
    with pytest.raises(RemoteTrouble):
        push(remote, make_entry(store, 2, {"x": b"new"}), store)
    assert remote.trouble("write")
    assert remote.find(sent.key) is not None


def test_a_server_that_keeps_something_else_is_noticed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = place.blobs()
    if isinstance(blobs, FolderBlobs):
        monkeypatch.setattr(FolderBlobs, "_write_temporary", _write_badly(FolderBlobs._write_temporary))
    else:
        assert isinstance(blobs, DriverBlobs)
        pipe = blobs._fs.pipe_file
        monkeypatch.setattr(blobs._fs, "pipe_file", lambda path, data, **_: pipe(path, b"x" + data[1:]))
    with pytest.raises(BlobDamaged):
        blobs.write("v1/x", b"content")


def _write_badly(write: Callable[[FolderBlobs, str, bytes], Path]) -> Callable[[FolderBlobs, str, bytes], Path]:
    return lambda self, name, data: write(self, name, b"x" + data[1:])


PUSH = """
import sys, threading
from pathlib import Path
sys.path.insert(0, {tests!r})
from support.remotes import push, writable
from trtx.cache import remote
from trtx.cache.store import Store
remote.CHUNK_BYTES = remote.MIN_CHUNK_BYTES = 1000
store = Store(Path({cache!r}))
manifest = store.find({key!r}).manifest
def progress(done, total):
    print(done, flush=True)
    if done >= {pause_at}:
        threading.Event().wait()
writable({url!r}, {endpoint!r}).push(manifest, store, progress, threading.Event())
"""


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(remote_module, "MIN_CHUNK_BYTES", 1000)


def test_an_upload_that_was_killed_goes_on_where_it_was(
    s3: S3Server, s3_place: Place, store: Store, other_store: Store, small_chunks: None
) -> None:
    content = b"".join(b"%d" % number * 1000 for number in range(10))[:10_000]
    sent = make_entry(store, files={"x": bytes(number % 251 for number in range(10_000)), "y": content})
    values = {"cache": str(store.root), "key": sent.key, "url": s3_place.url, "endpoint": s3_place.endpoint}
    script = PUSH.format(**values, tests=str(Path(__file__).parents[1]), pause_at=8000)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment_with(**CREDENTIALS), text=True
    )
    assert process.stdout is not None
    assert any(line.strip() == "8000" for line in process.stdout)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    prefix = s3_place.url.rpartition("/")[2]
    before = s3.requests("PUT", prefix)
    remote = writable(s3_place.url, s3_place.endpoint)
    assert remote.find(sent.key) is None
    assert push(remote, sent, store)
    after = s3.requests("PUT", prefix)[len(before) :]
    assert len(before) >= 8
    assert not set(before) & set(after)
    offer = remote.find(sent.key)
    assert offer is not None
    assert len(set(before) | set(after)) == len({name for row in offer.chunks for name in row}) + 1
    assert after[-1].endswith(f"{sent.key}.json")


def test_a_blob_that_was_cut_off_is_sent_again(place: Place, store: Store, other_store: Store) -> None:
    sent = make_entry(store, files={"x": b"content"})
    name = blob_name(sent.files[0].sha256)
    place.blobs().write(name, b"cont")
    push(writable(place.url, place.endpoint), sent, store)
    assert place.blobs().read(name, 100) == b"content"
