"""Machines with caches of their own share a remote: what one makes the others take, and each step is made once."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support.fleet import Machine, MakeMachine, leaf, remotes_of
from support.remotes import Place, closed_port, make_entry, make_store, proxy, push
from support.steps import InlineRunner, Watcher, install_stage, states, write_output

from trtx.cache.remote import RemoteSpec, blob_name, entry_name
from trtx.cache.remote_lease import Leases, Turn
from trtx.cache.remote_push import WritableRemote
from trtx.cache.signing import make_key_file
from trtx.cache.store import Store
from trtx.errors import StepFailed
from trtx.plan import execute
from trtx.plan.execute import Execution
from trtx.plan.record import create_run
from trtx.plan.remotes import Remotes
from trtx.plan.survey import State, overlay, survey
from trtx.stages.base import StepContext


def num_objects(machine: Machine) -> int:
    remote = machine.remotes().all[0]
    return len(remote.find_many([step.key for step in machine.plan.steps])[0])


def test_what_one_machine_made_another_takes(machines: MakeMachine) -> None:
    one, two = machines("one"), machines("two")
    first = one.apply()
    assert set(states(list(first.statuses.values())).values()) == {State.DONE}
    assert first.warnings == []
    assert num_objects(two) == len(two.plan.steps)
    planned = two.survey()
    assert {step: state for step, state in planned.items() if state is not State.NOT_NEEDED} == {
        step.id: State.REMOTE for step in two.plan.leaves()
    }
    second = two.apply()
    assert two.runner.order == []
    assert second.statuses[leaf(two.plan)].reason == "taken from remote shared in this run"
    assert two.store.find(two.plan.leaves()[0].key).manifest == one.store.find(one.plan.leaves()[0].key).manifest


def test_a_plan_says_where_an_entry_is(machines: MakeMachine) -> None:
    machines("one").apply()
    two = machines("two")
    status = next(s for s in survey(two.plan, two.store, None, two.remotes()) if s.step.id == leaf(two.plan))
    assert status.reason.startswith("in remote shared, ")


def test_only_inputs_of_what_runs_are_taken(machines: MakeMachine) -> None:
    one, two = machines("one"), machines("two")
    one.apply()
    package = one.plan.leaves()[0]
    remote = one.remotes().writable[0]
    remote.write_object(lambda blobs: blobs.remove(entry_name(package.key)))
    execution = two.apply()
    assert two.runner.order == [package.id]
    taken = {step for step, status in execution.statuses.items() if "taken from" in status.reason}
    assert taken == {entry.step for entry in package.inputs.values()}
    assert num_objects(two) == len(two.plan.steps)


def spoil_blob(machine: Machine, step_id: str, content: bytes = b"spoiled") -> None:
    """Replace the content of a step's first file on the remote."""
    remote = machine.remotes().writable[0]
    offer = remote.find(machine.plan.step(step_id).key)
    assert offer is not None
    remote.write_object(lambda blobs: blobs.write(blob_name(offer.chunks[0][0]), content))


def test_a_corrupt_remote_entry_is_refused_rebuilt_and_replaced(machines: MakeMachine) -> None:
    one, two, three = machines("one"), machines("two"), machines("three")
    one.apply()
    spoil_blob(one, leaf(one.plan))
    execution = two.apply()
    assert two.runner.order == [leaf(two.plan)]
    assert execution.errors == {}
    assert "damaged" in execution.warnings[0]
    assert execution.statuses[leaf(two.plan)].reason == "made in this run"
    assert "refused" in [event["event"] for event in execution.record.events()]
    healed = three.apply()
    assert three.runner.order == []
    assert healed.warnings == []


def test_when_everything_on_a_remote_is_corrupt_all_is_rebuilt(machines: MakeMachine) -> None:
    one, two, three = machines("one"), machines("two"), machines("three")
    one.apply()
    for step in one.plan.steps:
        spoil_blob(one, step.id)
    execution = two.apply()
    assert execution.errors == {}
    # The two downloads have one content here: the first that is made anew heals the other's blob as well.
    assert {step.id for step in two.plan.steps if not step.id.startswith("download/")} <= set(two.runner.order)
    three.apply()
    assert three.runner.order == []


def test_garbage_instead_of_entries_is_ignored_with_a_reason_and_replaced(machines: MakeMachine) -> None:
    one = machines("one")
    remote = one.remotes().writable[0]
    for step in one.plan.steps:
        remote.write_object(lambda blobs, key=step.key: blobs.write(entry_name(key), b"<html>"))  # type: ignore[misc]
    remotes = one.remotes()
    survey(one.plan, one.store, None, remotes)
    count = len(one.plan.steps)
    assert remotes.notes() == [f"remote shared: {count} entries ignored: its object is not an entry of a trtx cache"]
    assert one.apply().errors == {}
    two = machines("two")
    two.apply()
    assert two.runner.order == []


def test_a_corrupt_local_entry_is_taken_from_the_remote(machines: MakeMachine) -> None:
    one = machines("one")
    one.apply()
    path = one.store.output(one.plan.leaves()[0].key) / "output.txt"
    path.chmod(0o644)
    path.write_text("spoiled")
    execution = one.apply()
    assert one.runner.order == []
    assert execution.errors == {}
    assert one.survey()[leaf(one.plan)] is State.CACHED


def test_a_remote_that_is_only_read_gets_nothing(machines: MakeMachine, place: Place) -> None:
    place.blobs().write("v1/exists", b"1")
    one = machines("one", "mode=read")
    execution = one.apply()
    assert execution.errors == {}
    assert num_objects(one) == 0


def test_a_job_of_a_pull_request_puts_nothing_anywhere(machines: MakeMachine, place: Place) -> None:
    place.blobs().write("v1/exists", b"1")
    one = machines("one", GITHUB_EVENT_NAME="pull_request")
    assert one.apply().errors == {}
    assert num_objects(one) == 0
    machines("two").apply()
    three = machines("three", CI_MERGE_REQUEST_ID="7")
    three.apply()
    assert three.runner.order == []


def test_a_failed_step_is_left_to_other_machines(machines: MakeMachine) -> None:
    def fail(_context: StepContext) -> None:
        raise StepFailed("no luck")

    one, two = machines("one"), machines("two")
    assert one.apply({"benchmark": fail}).errors
    assert two.apply().errors == {}
    assert "benchmark/cpu/fp32" in two.runner.order
    assert "build/cpu/fp32" not in two.runner.order


def test_status_shows_what_a_run_took(machines: MakeMachine) -> None:
    machines("one").apply()
    two = machines("two")
    execution = two.apply()
    shown = overlay(survey(two.plan, two.store), execution.record)
    reasons = {status.step.id: status.reason for status in shown}
    assert reasons[leaf(two.plan)] == "taken from remote shared in this run"


def test_an_answer_that_nobody_foresaw_skips_the_remote_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("odd")

    sent = make_entry(store)
    remotes = [WritableRemote(RemoteSpec(name, f"file://{tmp_path / name}", True)) for name in ("good", "odd")]
    for remote in remotes:
        push(remote, sent, store)
    monkeypatch.setattr(remotes[1], "_read_offer", fail)
    asked = Remotes(remotes)
    assert asked.find([sent.key])[sent.key].remote is remotes[0]
    assert asked.skipped == {"odd": "ZeroDivisionError: odd"}
    assert Leases(remotes[1]).claim(sent.key).turn is Turn.UNKNOWN


def make_machine(tmp_path: Path, remotes: str, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "machine", remotes, monkeypatch)


def test_a_remote_that_is_down_is_skipped_with_a_reason(
    tmp_path: Path, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    url = f"s3://bucket/x;name=shared;mode=read-write;endpoint={endpoint}"
    one = make_machine(tmp_path, url, monkeypatch)
    remotes = one.remotes()
    survey(one.plan, one.store, None, remotes)
    assert remotes.notes() == [f"remote shared (s3://bucket/x) was skipped: cannot connect to {endpoint}"]
    execution = one.apply()
    assert execution.errors == {}
    assert len(one.runner.order) == len(one.plan.steps)
    assert len(execution.warnings) == 1
    assert "was not put on remote shared" in execution.warnings[0]


def test_a_remote_that_stalls_is_skipped_at_its_deadline(
    tmp_path: Path, s3_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert s3_place.endpoint is not None
    with proxy(s3_place.endpoint) as between:
        between.stall.set()
        url = f"{s3_place.url};name=slow;mode=read-write;timeout=200ms;endpoint={between.endpoint}"
        one = make_machine(tmp_path, url, monkeypatch)
        execution = one.apply()
    assert execution.errors == {}
    assert execution.remotes is not None
    assert "did not answer" in execution.remotes.notes()[0]


def test_of_two_remotes_the_first_that_has_an_entry_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = f"file://{tmp_path}/near;name=near", f"file://{tmp_path}/far;name=far"
    Machine(tmp_path / "one", f"{far};mode=read-write", monkeypatch).apply()
    two = Machine(tmp_path / "two", f"{near};mode=read-write,{far}", monkeypatch)
    execution = two.apply()
    assert execution.statuses[leaf(two.plan)].reason == "taken from remote far in this run"


def test_an_entry_that_one_remote_spoiled_is_taken_from_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = f"file://{tmp_path}/near;name=near", f"file://{tmp_path}/far;name=far"
    one = Machine(tmp_path / "one", f"{near};mode=read-write,{far};mode=read-write", monkeypatch)
    one.apply()
    spoil_blob(one, leaf(one.plan))
    two = Machine(tmp_path / "two", f"{near},{far}", monkeypatch)
    execution = two.apply()
    assert two.runner.order == []
    assert execution.statuses[leaf(two.plan)].reason == "taken from remote far in this run"


def test_unsigned_entries_are_ignored_where_signatures_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = make_key_file(tmp_path / "ours.pem"), make_key_file(tmp_path / "other.pem")
    url = f"file://{tmp_path}/share"

    def site(name: str, private: str | None, trusted: str, trust: str) -> dict[str, str]:
        path = tmp_path / f"{name}.yaml"
        sign = f"sign: {{private_key: {tmp_path}/{private}}}" if private else ""
        remote = f"{{name: shared, url: '{url}', mode: read-write, trust: {trust}}}"
        path.write_text(f"cache:\n  remotes: [{remote}]\n  trusted_keys: {{ci: '{trusted}'}}\n  {sign}\n")
        return {"TRTX_CONFIG": str(path)}

    def run(name: str, private: str | None, trusted: str, trust: str = "signed") -> tuple[Machine, Execution]:
        made = Machine(tmp_path / name, "", monkeypatch, **site(name, private, trusted, trust))
        del made.environ["TRTX_CACHE_REMOTES"]
        return made, made.apply()

    run("unsigned", None, ours, trust="digest")
    signed, execution = run("signed", "ours.pem", ours)
    assert len(signed.runner.order) == len(signed.plan.steps), "nobody trusts what is unsigned"
    assert execution.remotes is not None
    assert "ignored: it is not signed" in execution.remotes.notes()[0]
    reader, execution = run("reader", None, ours)
    assert reader.runner.order == []
    assert ", signed by ci" in next(
        status.reason
        for status in survey(reader.plan, make_store(tmp_path / "fresh"), None, reader.remotes())
        if status.step.id == leaf(reader.plan)
    )
    stranger, execution = run("stranger", None, other)
    assert len(stranger.runner.order) == len(stranger.plan.steps)
    assert execution.remotes is not None
    assert "is only read: its entries must be signed" in execution.remotes.notes()[0]
    assert "not signed by a trusted key" in execution.remotes.notes()[1]
    again, _ = run("again", None, ours)
    assert again.runner.order == [], "the stranger changed nothing"


def test_nothing_is_on_its_way_while_a_benchmark_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow upload is still under way when the benchmark could begin."""
    one = Machine(tmp_path / "one", f"file://{tmp_path}/share;name=shared;mode=read-write", monkeypatch)
    on_their_way: list[bool] = []
    push, sending = WritableRemote.push, threading.Event()

    def push_slowly(*arguments: Any, **options: Any) -> bool:
        sending.set()
        threading.Event().wait(0.2)
        done = push(*arguments, **options)
        sending.clear()
        return done

    def measure(context: StepContext) -> None:
        on_their_way.append(sending.is_set())
        write_output(context)

    monkeypatch.setattr(WritableRemote, "push", push_slowly)
    monkeypatch.setattr(execute, "TICK_S", 0.02)
    assert one.apply({"benchmark": measure}).errors == {}
    assert on_their_way == [False]


def test_an_interruption_leaves_nothing_half_and_gives_leases_back(machines: MakeMachine) -> None:
    one, two = machines("one"), machines("two")

    class Stopping(InlineRunner):
        def wait(self, timeout_s: float) -> Any:
            if "build/cpu/fp32" in self.order:
                raise KeyboardInterrupt
            return super().wait(timeout_s)

    install_stage(one.monkeypatch, None)
    record = create_run(one.folder, one.plan)
    execution = Execution(one.plan, one.store, Stopping(), record, {}, Watcher())
    execution.remotes = one.remotes()
    with pytest.raises(KeyboardInterrupt):
        execution.run(survey(one.plan, one.store, None, execution.remotes))
    assert two.apply().errors == {}
    assert set(two.survey().values()) <= {State.CACHED, State.NOT_NEEDED}


def test_machines_whose_leases_do_not_work_are_both_correct(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    monkeypatch.setattr(Leases, "_take", lambda *_: (Turn.OURS, ""))
    one, two = (Machine(tmp_path / name, remotes_of(place), monkeypatch) for name in ("one", "two"))

    def other_machine_first(context: StepContext) -> None:
        if not two.runner.order:
            two.apply()
            install_stage(monkeypatch)
        write_output(context)

    assert one.apply({"download": other_machine_first}).errors == {}
    assert one.store.find(one.plan.leaves()[0].key).manifest is not None


def test_without_remotes_nothing_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from trtx.plan.remotes import open_remotes; from trtx.plan.execute import Execution;"
        f"assert open_remotes({{'XDG_CONFIG_HOME': {str(tmp_path)!r}}}) is None;"
        "print([name for name in ('fsspec', 's3fs', 'cryptography', 'trtx.cache.remote', 'trtx.plan.site_schema')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_full_disk_while_taking_an_entry_is_an_error_of_the_step(
    machines: MakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines("one").apply()
    two = machines("two")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "_move_in", full)
    execution = two.apply()
    assert "the disk is full" in execution.errors[leaf(two.plan)].why
    assert execution.statuses[leaf(two.plan)].state is State.FAILED
