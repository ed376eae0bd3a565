"""Whatever happens to jobs, nodes, the controller or its answers, a run ends in the right state, with the right cause
in `trtx status`, with the right exit code, and executes nothing twice that did not have to be.

The faults happen side by side, on clusters of their own where others would feel them. Jobs run the real worker with
stages that only keep count.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
from support.slurm import wait_until
from support.slurm_config import Node
from support.slurm_site import Ground, Site
from support.slurm_table import PROPERTY, End, make_row

RUN = ("recipe.yaml:h100/fp32", "--until", "convert")
FIRST, LAST = "calibrate/fp32", "convert/h100/fp32"
# Where the second job's submission is kept.
ROUND = ".trtx/runs/*/slurm/cluster/groups/convert/rounds/1"
SMALL = (Node("n1", "", 0, 16, 64000, ("cpu",)), Node("n2", "", 0, 16, 64000, ("cpu",)))


def shown(errors: str, pattern: str) -> str:
    """What a command said of something, in its own words."""
    found = re.search(pattern, errors)
    assert found, errors
    return found[0]


def apply(site: Site, **environ: str) -> tuple[int, str]:
    done = site.project.trtx("apply", *RUN, **environ)
    return done.returncode, done.stderr


def detach(site: Site) -> Site:
    """Submit a run whose first step waits, and leave when that runs."""
    site.steps.hold(FIRST)
    done = site.project.trtx("apply", *RUN, "--detach")
    assert done.returncode == 0, done.stderr
    site.begun(FIRST)
    return site


def attach(site: Site, **environ: str) -> tuple[int, str]:
    done = site.project.trtx("attach", **environ)
    return done.returncode, done.stderr


def the_step_itself_fails(ground: Ground) -> End:
    site = ground.site()
    site.steps.fail(FIRST)
    code, _ = apply(site)
    assert site.rows()[LAST]["state"] == "blocked"
    return site.end(FIRST, code)


def sbatch_submits_and_its_reply_is_lost(ground: Ground) -> End:
    site = ground.site()
    held = site.steps.hold(FIRST)
    fails = 'echo "sbatch: error: Batch job submission failed: Socket timed out" >&2; exit 1'
    path = site.wrap("sbatch", f'/usr/bin/sbatch "$@" > "$0.$n"; if [ $n = 2 ]; then {fails}; fi; cat "$0.$n"')
    with site.driver("apply", *RUN, PATH=path) as driver:
        site.begun(FIRST)
        wait_until(lambda: len(site.jobs()) == 2, "the other job waits")
        wait_until(lambda: list(site.project.folder.glob(f"{ROUND}/submitted.json")), "it is found", seconds=60)
        held.unlink()
        errors = site.ends(driver)
    assert (site.steps.folder / "bin/sbatch.calls").read_text() == "2\n"
    return site.end(LAST, driver.returncode, shown(errors, r"job \d+ had been submitted; its reply was lost"))


def squeue_answers_nothing_three_times_and_then_garbage(ground: Ground) -> End:
    site = ground.site()
    held = site.steps.hold(FIRST)
    answers = "if [ $n -le 3 ]; then exit 0; fi; if [ $n -le 5 ]; then head -c 3000 /dev/urandom; exit 0; fi"
    path = site.wrap("squeue", f'{answers}; exec /usr/bin/squeue "$@"')
    calls = site.steps.folder / "bin/squeue.calls"
    with site.driver("apply", *RUN, PATH=path) as driver:
        wait_until(lambda: calls.exists() and int(calls.read_text() or 0) > 6, "squeue answered them all")
        assert site.rows()[FIRST]["state"] == "running"
        held.unlink()
        errors = site.ends(driver)
    assert driver.returncode is not None
    return site.end(FIRST, driver.returncode, shown(errors, r"squeue printed \d+ lines that cannot be read"))


def accounting_is_off_and_the_queue_forgot_a_job_that_was_killed(ground: Ground) -> End:
    site = detach(ground.site())
    job, _, _ = site.rows()[FIRST]["job"]["id"].partition("_")
    site.cluster.kill_steps(job)
    site.wrap("squeue", "exit 0")
    path = site.wrap("scontrol", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    assert "disabled" in site.cluster.run("sacct").stderr
    site.steps.release()
    code, _ = attach(site, PATH=path)
    site.cluster.run("scancel", job)
    return site.end(FIRST, code)


def preempted_and_requeued_by_slurm(ground: Ground) -> End:
    return preempt(ground.site(partition="low", cpus=16), "high")


def preempted_and_cancelled_by_slurm(ground: Ground) -> End:
    return preempt(ground.site(partition="gone", cpus=16, requeue=False), "higher")


def preempt(site: Site, partition: str) -> End:
    """A job of a better partition takes the node that a step has."""
    held = site.steps.hold(FIRST)
    with site.driver("apply", *RUN) as driver:
        site.begun(FIRST)
        other = ("--wrap=sleep 0.5", "--output=/dev/null", "--cpus-per-task=16")
        site.cluster.run("sbatch", f"--partition={partition}", *other, check=True)
        site.begun(FIRST, 2)
        held.unlink()
        site.ends(driver)
    return site.end(FIRST, driver.returncode)


def the_time_limit_is_near_and_the_step_stops_in_order(ground: Ground) -> End:
    # Nine seconds by the clock on the wall until it is warned: a busy machine needs some to begin.
    site = ground.site(time="2min", warn="30s")
    held = site.steps.hold(FIRST)
    with site.driver("apply", *RUN) as driver:
        site.begun(FIRST, 2)
        held.unlink()
        site.ends(driver)
    [script] = site.project.folder.glob(".trtx/runs/*/slurm/cluster/groups/calibrate/rounds/2/job.sh")
    assert "#SBATCH --time=4\n" in script.read_text()
    return site.end(FIRST, driver.returncode)


def the_time_limit_ends_it_twice(ground: Ground) -> End:
    site = ground.site(time="1min", warn="0s", setup=["trap '' TERM"])
    site.steps.hold(FIRST)
    code, _ = apply(site)
    return site.end(FIRST, code)


def more_memory_is_needed_than_the_job_has(ground: Ground) -> End:
    site = ground.site(ground.limited)
    site.steps.eat(FIRST, 150)
    code, _ = apply(site)
    return site.end(FIRST, code)


def twice_the_memory_is_not_enough(ground: Ground) -> End:
    site = ground.site(ground.limited)
    site.steps.eat(FIRST, 300)
    code, _ = apply(site)
    return site.end(FIRST, code)


def cancelled_from_outside(ground: Ground) -> End:
    site = ground.site()
    site.steps.hold(FIRST)
    with site.driver("apply", *RUN) as driver:
        site.begun(FIRST)
        site.cluster.run("scancel", "--state=RUNNING", *site.jobs())
        site.ends(driver)
    return site.end(FIRST, driver.returncode)


def a_dependency_that_can_never_be_satisfied(ground: Ground) -> End:
    site = detach(ground.site())
    site.cluster.run("scancel", "--state=RUNNING", *site.jobs())
    wait_until(lambda: not site.jobs(), "Slurm ended what waited for it")
    code, _ = attach(site)
    return site.end(LAST, code)


def slurmd_is_killed_and_its_steps_live_on(ground: Ground) -> End:
    return kill_node(ground, whole=False)


def a_node_dies_with_all_that_runs_on_it(ground: Ground) -> End:
    return kill_node(ground, whole=True)


def kill_node(ground: Ground, *, whole: bool) -> End:
    with ground.cluster(SMALL) as cluster:
        site = ground.site(cluster)
        held = site.steps.hold(FIRST)
        with site.driver("apply", *RUN) as driver:
            site.begun(FIRST)
            job = site.rows()[FIRST]["job"]
            cluster.kill(f"slurmd.{job['node']}")
            if whole:
                cluster.kill_steps()
            # What lives on leaves when Slurm has started it on the other node, and only then does that begin.
            site.begun(FIRST, 2)
            held.unlink()
            site.ends(driver)
        return site.end(FIRST, driver.returncode)


def a_drained_node_is_all_there_is(ground: Ground) -> End:
    with ground.cluster(SMALL[:1]) as cluster:
        site = ground.site(cluster)
        cluster.run("scontrol", "update", "nodename=n1", "state=drain", "reason=test", check=True)
        with site.driver("apply", *RUN) as driver:
            wait_until(lambda: site.row_if_any(FIRST).get("reason", "").startswith("for a node"), "status says why")
            row = site.rows()[FIRST]
            cluster.run("scontrol", "update", "nodename=n1", "state=resume", check=True)
            site.ends(driver)
        assert row["state"] == "queued"
        return site.end(FIRST, driver.returncode, row["reason"])


def slurmctld_is_killed_and_starts_again_10_s_later(ground: Ground) -> End:
    with ground.cluster(SMALL[:1], speed=1) as cluster:
        site = ground.site(cluster)
        held = site.steps.hold(FIRST)
        with site.driver("apply", *RUN) as driver:
            site.begun(FIRST)
            cluster.kill("slurmctld", signal.SIGKILL)
            killed = time.monotonic()
            said = site.project.json("status")
            assert {row["step"]: row["state"] for row in said["status"]}[FIRST] == "running"
            held.unlink()
            time.sleep(max(0.0, killed + 10 - time.monotonic()))
            cluster.start_controller()
            site.ends(driver)
        return site.end(FIRST, driver.returncode, said["silence"])


# What happens → how it ends: the step's state, cause and starts and finishes, and the exit code of the run.
FAULTS: dict[Callable[[Ground], End], tuple[str, str, int, int, int]] = {
    the_step_itself_fails: ("failed", "it was asked to fail", 1, 1, 0),
    cancelled_from_outside: ("cancelled", "it was cancelled from outside on", 130, 1, 0),
    a_dependency_that_can_never_be_satisfied: ("blocked", "dependency never satisfied", 130, 1, 0),
    sbatch_submits_and_its_reply_is_lost: ("done", "its reply was lost", 0, 1, 1),
    squeue_answers_nothing_three_times_and_then_garbage: ("done", "lines that cannot be read", 0, 1, 1),
    accounting_is_off_and_the_queue_forgot_a_job_that_was_killed: ("done", "in attempt 2: lost", 0, 2, 1),
    preempted_and_requeued_by_slurm: ("done", "in attempt 2: Slurm had started it again", 0, 2, 1),
    preempted_and_cancelled_by_slurm: ("done", "in attempt 2: preempted", 0, 2, 1),
    the_time_limit_is_near_and_the_step_stops_in_order: ("done", "in attempt 2: time limit", 0, 2, 1),
    the_time_limit_ends_it_twice: ("failed", "it reached its time limit on", 124, 2, 0),
    more_memory_is_needed_than_the_job_has: ("done", "in attempt 2: out of memory", 0, 2, 1),
    twice_the_memory_is_not_enough: ("failed", "it needed more memory than its job had on", 6, 2, 0),
    slurmd_is_killed_and_its_steps_live_on: ("done", "in attempt 2: Slurm had started it again", 0, 2, 1),
    a_node_dies_with_all_that_runs_on_it: ("done", "in attempt 2: Slurm had started it again", 0, 2, 1),
    a_drained_node_is_all_there_is: ("done", "for a node that is drained", 0, 1, 1),
    slurmctld_is_killed_and_starts_again_10_s_later: ("done", "Unable to contact slurm controller", 0, 1, 1),
}
AT_ONCE = 6


@pytest.fixture(scope="module")
def ends(request: pytest.FixtureRequest, ground: Ground) -> Iterator[dict[str, Future[End]]]:
    """The ends of all faults that are asked for, which happen at the same time; the longest begin first."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {fault: pool.submit(fault, ground) for fault in reversed(ground.asked(request, "fault"))}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_run_survives(
    fault: Callable[[Ground], End],
    ends: dict[Callable[[Ground], End], Future[End]],
    record_property: Callable[[str, object], None],
) -> None:
    end = ends[fault].result()
    record_property(PROPERTY, make_row(fault.__name__.replace("_", " "), end))
    state, cause, exit_code, starts, finishes = FAULTS[fault]
    assert cause in end.cause
    assert replace(end, cause=cause, steps=0) == End(state, cause, exit_code, 0, starts, finishes)
