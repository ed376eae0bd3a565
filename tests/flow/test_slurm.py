"""`trtx apply` on a real cluster: arrays and dependencies, drivers that die, leave or are replaced.

Jobs run the real worker with stages that only keep count, except where a test says so.
"""

from __future__ import annotations

import json
import signal

from support.slurm import wait_until
from support.slurm_site import NUM_GROUPS, STAGES, TARGETS, Site

from trtx.files import write_json


def test_three_targets_run_with_one_sbatch_for_each_stage_and_kind_of_node(site: Site) -> None:
    done = site.project.trtx("apply", "recipe.yaml", "-o", "json")
    assert done.returncode == 0, done.stderr
    rows = {row["step"]: row for row in json.loads(done.stdout)["status"]}
    site.check_all_ran_once()
    assert site.sbatch_calls() == NUM_GROUPS
    for name in TARGETS:
        assert rows[f"build/{name}/fp32"]["state"] == "done"
        assert rows[f"build/{name}/fp32"]["job"]["node"].startswith(name)
        assert (site.project.folder / f"out/small/{name}/fp32").is_dir()
    again = site.project.json("apply", "recipe.yaml", "--until", "benchmark")
    assert {row["state"] for row in again["status"]} == {"cached"}
    assert site.sbatch_calls() == NUM_GROUPS


def test_no_secret_of_the_environment_is_written_anywhere(site: Site) -> None:
    done = site.project.trtx("apply", "recipe.yaml", "--until", "convert")
    assert done.returncode == 0, done.stderr
    files = [path for path in site.project.folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if b"hf_secret" in path.read_bytes()]


def test_a_driver_that_detaches_leaves_a_run_that_attach_finishes(site: Site) -> None:
    held = site.steps.hold("build/h100/fp32")
    done = site.project.trtx("apply", "recipe.yaml", "--detach")
    assert done.returncode == 0, done.stderr
    assert "next: trtx status --watch, trtx logs -f STEP, trtx attach, trtx cancel" in done.stderr
    assert not (site.project.folder / "out").exists()
    wait_until(lambda: site.steps.counts()["build/h100/fp32 start"], "the build runs")
    rows = site.rows()
    assert (rows["build/h100/fp32"]["state"], rows["package/h100/fp32"]["state"]) == ("running", "queued")
    assert rows["build/h100/fp32"]["job"]["node"].startswith("h100")
    assert "its jobs go on, and no process follows them" in site.project.trtx("status").stderr
    held.unlink()
    finished = site.project.json("attach")
    assert {row["state"] for row in finished["status"] if row["stage"] in STAGES} == {"done"}
    assert set(finished["packages"]) == {f"{name}/fp32" for name in TARGETS}
    assert (site.project.folder / "recipe.lock.yaml").exists()
    site.check_all_ran_once()
    assert site.sbatch_calls() == NUM_GROUPS


def test_ctrl_c_leaves_the_jobs_and_says_how_to_find_them_again(site: Site) -> None:
    held = site.steps.hold("calibrate/fp32")
    with site.start("apply", "recipe.yaml", "--until", "convert") as driver:
        wait_until(lambda: site.steps.counts()["calibrate/fp32 start"], "a job runs")
        driver.send_signal(signal.SIGINT)
        errors = site.ends(driver)
    assert driver.returncode == 130
    assert "its jobs go on" in errors
    assert "trtx attach" in errors
    assert "trtx cancel" in errors
    held.unlink()
    assert site.project.trtx("attach").returncode == 0
    assert site.steps.counts() == dict.fromkeys(
        [f"{step} {what}" for step in ("calibrate/fp32", "convert/a100/fp32") for what in ("start", "finish")], 1
    )


def test_a_driver_whose_run_was_taken_over_from_another_machine_leaves(site: Site) -> None:
    held = site.steps.hold("calibrate/fp32")
    with site.start("apply", "recipe.yaml", "--until", "convert") as driver:
        wait_until(lambda: site.steps.counts()["calibrate/fp32 start"], "a job runs")
        note = next(site.project.folder.glob(".trtx/runs/*/driver.json"))
        other = json.loads(note.read_bytes()) | {"host": "login2", "pid": 7}
        write_json(note, other)
        errors = site.ends(driver)
    assert driver.returncode == 130
    assert "process 7 on login2" in errors
    assert not (site.project.folder / "out").exists()
    held.unlink()
    # Whether a process of another machine lives cannot be known: attaching takes the run over from it.
    assert site.project.trtx("attach").returncode == 0
    assert site.steps.counts()["convert/a100/fp32 finish"] == 1


def test_status_without_an_answer_of_slurm_shows_what_the_jobs_wrote(site: Site) -> None:
    held = site.steps.hold("calibrate/fp32")
    assert site.project.trtx("apply", "recipe.yaml", "--until", "convert", "--detach").returncode == 0
    wait_until(lambda: site.steps.counts()["calibrate/fp32 start"], "a job runs")
    squeue = site.steps.folder / "squeue"
    squeue.write_text("#!/bin/sh\necho 'squeue: error: Unable to contact slurm controller' >&2\nexit 1\n")
    squeue.chmod(0o755)
    shown = site.project.trtx("status", PATH=f"{squeue.parent}:{site.project.environ['PATH']}")
    held.unlink()
    assert shown.returncode == 0
    assert "Slurm gave no answer: Unable to contact slurm controller" in shown.stderr
    assert "calibrate/fp32     running" in shown.stderr


def test_a_second_apply_does_not_make_what_a_run_is_making(site: Site) -> None:
    held = site.steps.hold("calibrate/fp32")
    with site.start("apply", "recipe.yaml", "--until", "convert") as driver:
        wait_until(lambda: site.steps.counts()["calibrate/fp32 start"], "a job runs")
        same = site.project.trtx("apply", "recipe.yaml", "--until", "convert")
        assert same.returncode == 2
        assert f"followed by process {driver.pid} already" in same.stderr
        driver.kill()
    other = site.project.trtx("apply", "recipe.yaml")
    assert other.returncode == 2
    assert "trtx attach --run" in other.stderr
    held.unlink()
    assert site.project.trtx("attach").returncode == 0
    assert site.project.trtx("apply", "recipe.yaml").returncode == 0
    site.check_all_ran_once()
