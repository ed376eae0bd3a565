"""What Slurm's programs print is read carefully, and what they mean is decided by tables and pure functions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtx.errors import UsageProblem
from trtx.runners.slurm.attempts import Attempt, Claim, End, History
from trtx.runners.slurm.budget import Budget
from trtx.runners.slurm.commands import Answer, Reply, classify_submission
from trtx.runners.slurm.dependencies import Awaited, make_dependency
from trtx.runners.slurm.groups import Group, SlurmTask, format_indices, number_tasks, parse_indices
from trtx.runners.slurm.node import memory_kills
from trtx.runners.slurm.options import Gpu, Resources, Timing
from trtx.runners.slurm.parsing import Row, parse_elapsed, parse_sacct, parse_scontrol, parse_squeue
from trtx.runners.slurm.retries import may_retry, next_resources
from trtx.runners.slurm.states import POLICIES, STATES, Cause, Phase, describe_waiting, find_cause, find_meaning
from trtx.runners.slurm.truth import Watch, decide, find_disagreement

TIMING = Timing(late_s=60, silence_s=60)
START = Claim("start", "t", job="7", node="n1", number=1, attempt=1)


@given(st.sets(st.integers(0, 5000), min_size=1))
def test_indices_are_written_and_read_back(indices: set[int]) -> None:
    assert set(parse_indices(format_indices(indices))) == indices


@given(st.text(max_size=300))
def test_no_text_makes_a_reader_fail(text: str) -> None:
    for parse in (parse_squeue, parse_sacct, parse_scontrol):
        rows, unreadable = parse(text)
        assert len(rows) + unreadable <= len(text.splitlines())


@pytest.mark.parametrize("text", ["", "x", "0-99999999999", "1-9:0", "1,,2", "0-...", "N/A"])
def test_what_is_no_list_of_indices_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not indices"):
        parse_indices(text)


def test_rows_of_squeue_are_read() -> None:
    text = "7|3|RUNNING|n1|2026-11-20T10:00:00|1:02|None|build-ab|trtx token=ab|x\n"
    text += "7|[4-6%2]|PENDING||N/A|0:00|Priority|b|\n"
    rows, unreadable = parse_squeue(text + "8|N/A|RUNNING|n1|N/A|0:00|None|other|\n7|1|RUNN")
    assert rows[0] == Row("7", (3,), "RUNNING", "None", "n1", "2026-11-20T10:00:00", 62, "build-ab", "trtx token=ab|x")
    assert rows[1].indices == (4, 5, 6)
    assert rows[2].indices == ()
    assert (len(rows), unreadable) == (3, 1)


def test_rows_of_sacct_and_scontrol_are_read() -> None:
    assert parse_sacct("7_3|CANCELLED by 0|n1|Unknown|5|None|build-ab\n7|PENDING|||0||x\n")[0] == [
        Row("7", (3,), "CANCELLED by 0", "None", "n1", "", 5, "build-ab"),
        Row("7", (), "PENDING", name="x"),
    ]
    line = "JobId=9 ArrayJobId=7 ArrayTaskId=3 JobName=build-ab JobState=FAILED Reason=NonZeroExitCode NodeList=n1"
    assert parse_scontrol(line)[0] == [Row("7", (3,), "FAILED", "NonZeroExitCode", "n1", name="build-ab")]
    assert parse_scontrol(line.replace("Id=3", "Id=4294967294"))[0][0].indices == ()


def test_elapsed_times_are_read() -> None:
    assert [parse_elapsed(text) for text in ("0:07", "1:02:03", "2-00:00:01", "INVALID")] == [7, 3723, 172801, 0]


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (Answer(0, "57\n"), Reply.ACCEPTED),
        (Answer(0, "57;cluster\n"), Reply.ACCEPTED),
        (Answer(0, "hello\n57\n"), Reply.ACCEPTED),
        (Answer(0, ""), Reply.UNCLEAR),
        (Answer(None), Reply.UNCLEAR),
        (Answer(1, err="sbatch: error: Batch job submission failed: Socket timed out on send/recv"), Reply.UNCLEAR),
        (Answer(1, err="sbatch: error: Batch job submission failed: Unable to contact slurm controller"), Reply.BUSY),
        (Answer(1, err="sbatch: error: AssocMaxSubmitJobLimit"), Reply.BUSY),
        (Answer(1, err="sbatch: error: invalid partition specified: x"), Reply.REFUSED),
        (Answer(127, err="bash: sbatch: command not found"), Reply.REFUSED),
        (Answer(137), Reply.UNCLEAR),
    ],
)
def test_replies_to_sbatch_are_told_apart(answer: Answer, reply: Reply) -> None:
    assert classify_submission(answer)[0] is reply


def test_every_state_has_a_phase_and_every_cause_a_policy() -> None:
    assert all((meaning.cause is None) == (meaning.phase is not Phase.ENDED) for meaning in STATES.values())
    assert set(POLICIES) == set(Cause) - {Cause.DONE}
    assert find_meaning("SOMETHING_NEW").phase is Phase.RUNNING
    assert find_cause("CANCELLED by 1000", "None") is Cause.CANCELLED
    assert find_cause("CANCELLED", "DependencyNeverSatisfied") is Cause.DEPENDENCY
    assert find_cause("PENDING", "DependencyNeverSatisfied") is None


def test_reasons_are_for_people() -> None:
    assert describe_waiting("JobArrayTaskLimit") == "throttled"
    assert describe_waiting("ReqNodeNotAvail, UnavailableNodes:n1") == "for a node that is drained, down or reserved:n1"
    assert describe_waiting("BadConstraints") == "BadConstraints"


def test_retries_change_what_their_cause_asks_for() -> None:
    resources = Resources(time_s=600, memory_bytes=1 << 30, gpu=Gpu(1))
    revoked = [
        Claim("revoke", "a", cause=Cause.TIMEOUT.value, retried=True),
        Claim("revoke", "b", cause=Cause.NODE.value, node="n1", retried=True),
        Claim("revoke", "c", cause=Cause.MEMORY.value, retried=True),
    ]
    changed = Resources(time_s=1200, memory_bytes=2 << 30, gpu=Gpu(1), exclude=("n1",))
    assert next_resources(resources, revoked) == changed
    assert not may_retry(Cause.TIMEOUT, revoked, resources)
    assert may_retry(Cause.NODE, revoked, resources)
    assert may_retry(Cause.PREEMPTED, revoked * 50, resources)
    assert not may_retry(Cause.FAILED, [], resources)
    assert not may_retry(Cause.TIMEOUT, [], Resources())


def test_the_budget_is_never_exceeded_in_any_minute() -> None:
    budget, asked, now = Budget(Timing()), [], 0.0
    while now < 3600:
        if budget.is_due(now, urgent=int(now) % 3 == 0):
            budget.note(now)
            asked.append(now)
            budget.polled(now, news=False)
        now += 1
    assert max(sum(first <= stamp < first + 60 for stamp in asked) for first in asked) <= 4


def awaited(*names: str) -> Awaited:
    return Awaited("7", tuple(range(len(names))), {name: index for index, name in enumerate(names)})


def tasks(*needs: tuple[str, ...]) -> list[SlurmTask]:
    return [SlurmTask(f"t{index}", index, Path("/x"), (), needs=need) for index, need in enumerate(needs)]


def test_dependencies_are_as_strong_as_they_may_be() -> None:
    assert make_dependency(tasks(("a",), ("b",)), [awaited("a", "b")]) == "aftercorr:7"
    assert make_dependency(tasks(("a", "b"), ("a", "b")), [awaited("a", "b")]) == "afterok:7"
    assert make_dependency(tasks(("b",)), [awaited("a", "b")]) == "afterok:7_1"
    assert make_dependency(tasks(("b",), ("a",)), [awaited("a", "b")]) == "afterany:7"
    assert make_dependency(tasks(("other",)), [awaited("a", "b")]) == ""


def test_steps_get_the_numbers_of_what_they_need() -> None:
    before = {"convert-a": 3, "convert-b": 5}
    chains = [("build-x", ()), ("build-a", ("convert-a",)), ("build-b", ("convert-b",)), ("build-c", ("convert-b",))]
    assert number_tasks(chains, before) == {"build-a": 3, "build-b": 5, "build-x": 0, "build-c": 1}


def test_a_group_s_name_and_indices_are_checked() -> None:
    with pytest.raises(UsageProblem, match="cannot be the name of a group"):
        Group("a/b", tuple(tasks(())))
    with pytest.raises(UsageProblem, match="is empty"):
        Group("a", ())
    with pytest.raises(UsageProblem, match="have the same index"):
        Group("a", (*tasks(()), *tasks(())))


def watch_of(state: str, readings: int = 1, since: float = 0.0, node: str = "n1") -> Watch:
    watch = Watch()
    for _ in range(readings):
        watch.hear(Row("7", (0,), state, node=node), since)
    return watch


def history_of(end: End | None, *, well: bool = False) -> History:
    return History((START,), (Attempt(START, end, well, has_result=False),))


def test_slurm_s_word_alone_ends_nothing_before_files_had_time_to_appear() -> None:
    history = history_of(None)
    watch = watch_of("FAILED", readings=2)
    watch.see_beat(b"1", 0.0)
    assert decide(history, "t", watch, 59, TIMING) is None
    verdict = decide(history, "t", watch, 61, TIMING)
    assert verdict is not None
    assert verdict.cause is Cause.FAILED
    assert decide(history, "t", watch_of("FAILED", readings=1), 1000, TIMING) is None


def test_a_task_that_beats_runs_whatever_slurm_says() -> None:
    watch = watch_of("NODE_FAIL", readings=5)
    watch.see_beat(b"1", 0.0)
    watch.see_beat(b"2", 100.0)
    assert decide(history_of(None), "t", watch, 120, TIMING) is None
    assert "it is taken to run" in find_disagreement(START_ATTEMPT, watch, 120, TIMING)


START_ATTEMPT = Attempt(START, None, False, False)


def test_a_denial_counts_twice_over_a_while_and_never_against_a_heartbeat() -> None:
    watch = Watch()
    watch.see_beat(b"1", 0.0)
    watch.hear_denial(10.0)
    assert decide(history_of(None), "t", watch, 1000, TIMING) is None
    watch.hear_denial(80.0)
    verdict = decide(history_of(None), "t", watch, 80, TIMING)
    assert verdict is not None
    assert verdict.cause is Cause.LOST
    watch.see_beat(b"2", 90.0)
    assert decide(history_of(None), "t", watch, 500, TIMING) is None


def test_a_good_result_stands_against_slurm() -> None:
    history = history_of(End("killed", signal=9), well=True)
    watch = watch_of("NODE_FAIL")
    verdict = decide(history, "t", watch, 0, TIMING)
    assert verdict is not None
    assert verdict.cause is Cause.DONE
    assert "it is done" in find_disagreement(history.attempts[0], watch, 0, TIMING)


@pytest.mark.parametrize(
    ("end", "state", "cause"),
    [
        (End("stopped", by="limit", exit_code=130), "FAILED", Cause.TIMEOUT),
        (End("stopped", by="signal", exit_code=130), "TIMEOUT", Cause.TIMEOUT),
        (End("stopped", by="signal", exit_code=130), "CANCELLED by 0", Cause.CANCELLED),
        (End("stopped", by="signal", exit_code=130), "COMPLETED", Cause.CANCELLED),
        (End("killed", signal=9), "OUT_OF_MEMORY", Cause.MEMORY),
        (End("killed", signal=9, cause="out of memory"), "FAILED", Cause.MEMORY),
        (End("killed", signal=9), "FAILED", Cause.FAILED),
        (End("failed", exit_code=3), "COMPLETED", Cause.FAILED),
        (End("refused", what="no"), "FAILED", Cause.WRONG_GPU),
        (End("blocked", what="no"), "FAILED", Cause.DEPENDENCY),
    ],
)
def test_what_a_task_says_is_completed_by_what_slurm_says(end: End, state: str, cause: Cause) -> None:
    verdict = decide(history_of(end), "t", watch_of(state), 0, TIMING)
    assert verdict is not None
    assert verdict.cause is cause


def test_one_reading_of_a_state_that_may_be_requeued_is_not_enough() -> None:
    stopped = history_of(End("stopped", by="signal"))
    assert decide(stopped, "t", watch_of("PREEMPTED"), 0, TIMING) is None
    verdict = decide(stopped, "t", watch_of("PREEMPTED", readings=2), 0, TIMING)
    assert verdict is not None
    assert verdict.cause is Cause.PREEMPTED
    assert decide(stopped, "t", watch_of("PENDING"), 0, TIMING) is None


def test_kills_for_memory_are_counted_in_both_kinds_of_control_groups(tmp_path: Path) -> None:
    proc = tmp_path / "cgroup"
    for line, name in (("5:memory:/a\n", "memory/a/memory.oom_control"), ("0::/b\n", "b/memory.events")):
        proc.write_text(line)
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("low 0\noom_kill 3\n")
        assert memory_kills(proc, tmp_path) == 3
    assert memory_kills(tmp_path / "absent", tmp_path) == 0


def test_a_notice_of_a_state_does_not_outlive_a_requeue() -> None:
    watch = watch_of("NODE_FAIL", readings=3)
    watch.hear(Row("7", (0,), "PENDING"), 5.0)
    assert (watch.ended_since, watch.ended_readings) == (None, 0)
    assert dataclasses.replace(watch).phase is Phase.QUEUED
