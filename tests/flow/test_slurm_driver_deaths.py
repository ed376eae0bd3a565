"""A driver may die at any instruction: `trtx apply` or `trtx attach` finishes its run, and nothing runs twice.

The deaths happen side by side. Jobs run the real worker with stages that only keep count.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from support.slurm import wait_until
from support.slurm_site import TARGETS, Ground, Site
from support.slurm_table import PROPERTY, End, make_row
from support.slurm_trtx import MOMENTS

UNTIL = ("--until", "build")
FIRST, LAST = "calibrate/fp32", "build/b200/fp32"
STEPS = (FIRST, "convert/a100/fp32", *(f"build/{name}/fp32" for name in TARGETS))
NUM_GROUPS = 2 + len(TARGETS)
# Moments that are known from what the jobs do.
SEEN = ("while a build runs", "when all has ended")
TAKEN_BACK = "when a failed round was taken back"
Death = tuple[str, str]
# Each moment is survived by one of the two verbs, in turns, those of the jobs by both.
DEATHS: list[Death] = [
    *zip(MOMENTS, ("apply", "attach") * len(MOMENTS), strict=False),
    *((moment, verb) for moment in SEEN for verb in ("apply", "attach")),
]


def die_and_finish(ground: Ground, moment: str, verb: str) -> End:
    healed = ground.folder / "healed"
    site = ground.site(**({"setup": [f"test -e {healed}"]} if moment == TAKEN_BACK else {}))
    if moment in SEEN:
        kill_when_seen(site, moment)
    else:
        died = site.project.trtx("apply", "recipe.yaml", *UNTIL, DIE_WHEN=moment)
        assert died.returncode == -signal.SIGKILL, died.stderr
    if moment == TAKEN_BACK:
        healed.touch()
    done = site.project.trtx(verb, *(["recipe.yaml", *UNTIL] if verb == "apply" else []))
    assert done.returncode == 0, done.stderr
    assert site.steps.counts() == {f"{step} {what}": 1 for step in STEPS for what in ("start", "finish")}
    assert len(list(site.project.folder.glob(".trtx/runs/*"))) == 1
    if moment != TAKEN_BACK:
        assert len(site.submitted()) == NUM_GROUPS
    again = site.project.json("apply", "recipe.yaml", *UNTIL)
    assert {row["state"] for row in again["status"]} == {"cached"}
    return site.end(LAST, done.returncode)


def kill_when_seen(site: Site, moment: str) -> None:
    held = site.steps.hold(LAST)
    with site.driver("apply", "recipe.yaml", *UNTIL) as driver:
        site.begun(LAST)
        os.kill(driver.pid, signal.SIGKILL)
    if moment == "when all has ended":
        held.unlink()
        wait_until(lambda: not site.jobs(), "all jobs have ended")
    site.steps.release()


@pytest.fixture(scope="module")
def ends(request: pytest.FixtureRequest, ground: Ground) -> Iterator[dict[Death, Future[End]]]:
    """The ends of all deaths that are asked for, which happen at the same time."""
    with ThreadPoolExecutor(4) as pool:
        yield {death: pool.submit(die_and_finish, ground, *death) for death in ground.asked(request, "death")}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("death", DEATHS, ids=", then ".join)
def test_a_driver_that_is_killed_is_followed_by_another(
    death: Death, ends: dict[Death, Future[End]], record_property: Callable[[str, object], None]
) -> None:
    end = ends[death].result()
    record_property(PROPERTY, make_row("driver killed -9 {}, then {}".format(*death), end))
    assert (end.state, end.exit_code, end.steps, end.starts, end.finishes) == ("done", 0, len(STEPS), 1, 1)
