"""Verbs around jobs of a real cluster: cancel, logs, status, scripts; jobs that fail; a simulated cluster."""

from __future__ import annotations

from pathlib import Path

from support.slurm import wait_until
from support.slurm_site import STAGES, TARGETS, Site, write_recipe


def test_cancel_ends_the_jobs_of_a_run_and_no_others(site: Site) -> None:
    site.steps.hold("calibrate/fp32")
    other = site.cluster.run("sbatch", "--parsable", "--hold", "--wrap=true", check=True).stdout.strip()
    with site.start("apply", "recipe.yaml", "--until", "build") as driver:
        wait_until(lambda: site.steps.counts()["calibrate/fp32 start"], "a job runs")
        cancelled = site.project.json("cancel")
        errors = site.ends(driver)
    assert set(cancelled["cancelled"]) == {"calibrate/fp32", "convert/a100/fp32", *(f"build/{n}/fp32" for n in TARGETS)}
    assert driver.returncode == 130, errors
    assert "it was cancelled" in errors
    assert {row["state"] for row in site.rows().values() if row["job"]} <= {"cancelled", "blocked"}
    wait_until(lambda: site.cluster.jobs() == [other], "its jobs are gone, another's is not")
    (site.steps.folder / "hold" / "calibrate.fp32").unlink()
    assert site.project.trtx("apply", "recipe.yaml", "--until", "build").returncode == 0


def test_cancel_without_a_driver_and_a_new_apply_starts_anew(site: Site) -> None:
    held = site.steps.hold("calibrate/fp32")
    assert site.project.trtx("apply", "recipe.yaml", "--until", "convert", "--detach").returncode == 0
    wait_until(lambda: site.steps.counts()["calibrate/fp32 start"], "a job runs")
    assert "cancelled calibrate/fp32, convert/a100/fp32" in site.project.trtx("cancel").stderr
    assert {row["state"] for row in site.rows().values() if row["job"]} == {"cancelled"}
    held.unlink()
    done = site.project.trtx("apply", "recipe.yaml", "--until", "convert")
    assert done.returncode == 0, done.stderr
    assert site.steps.counts()["convert/a100/fp32 finish"] == 1


def test_one_step_can_be_cancelled_and_the_others_finish(site: Site) -> None:
    held = site.steps.hold("build/h100/fp32")
    with site.start("apply", "recipe.yaml") as driver:
        wait_until(lambda: site.steps.counts()["build/h100/fp32 start"], "the build runs")
        assert site.project.trtx("cancel", "build/h100/*").returncode == 0
        errors = site.ends(driver)
    held.unlink()
    assert driver.returncode == 130, errors
    rows = site.rows()
    assert rows["build/h100/fp32"]["state"] == "cancelled"
    assert rows["package/h100/fp32"]["state"] == "blocked"
    assert rows["package/a100/fp32"]["state"] == "done"
    assert site.project.trtx("cancel", "bild/h100/fp32").returncode == 2


def test_a_step_that_fails_blocks_what_needs_it_and_the_others_finish(site: Site) -> None:
    failing = site.steps.fail("build/b200/fp32")
    done = site.project.trtx("apply", "recipe.yaml")
    assert done.returncode == 1
    assert "build/b200/fp32 failed: it was asked to fail" in done.stderr
    assert "fix: ask for something else" in done.stderr
    assert "steps/build/b200/fp32/attempts/1/log.txt" in done.stderr
    rows = site.rows()
    assert [rows[f"{stage}/b200/fp32"]["state"] for stage in STAGES[2:]] == ["failed", "blocked", "blocked"]
    assert rows["package/h100/fp32"]["state"] == "done"
    failing.unlink()
    assert site.project.trtx("apply", "recipe.yaml").returncode == 0
    assert site.steps.counts()["build/h100/fp32 start"] == 1


def test_logs_of_several_jobs_are_followed_with_their_names(site: Site) -> None:
    held = [site.steps.hold(f"build/{name}/fp32") for name in TARGETS]
    assert site.project.trtx("apply", "recipe.yaml", "--until", "build", "--detach").returncode == 0
    with site.start("logs", "-f", "build/*") as following, site.start("logs", "-f", "build/b200/fp32") as one:
        wait_until(lambda: sum(site.steps.counts()[f"build/{n}/fp32 start"] for n in TARGETS) == 3, "all builds run")
        for path in held:
            path.unlink()
        assert site.project.trtx("attach").returncode == 0
        printed, single = following.communicate(timeout=60)[0], one.communicate(timeout=60)[0]
    for name in TARGETS:
        assert f"build/{name}/fp32 | build/{name}/fp32 begins" in printed
        assert f"build/{name}/fp32 | build/{name}/fp32: published" in printed
    assert single.startswith("build/b200/fp32 begins")
    described = site.project.json("logs", "build/*")["logs"]
    assert [log["step"] for log in described] == [f"build/{name}/fp32" for name in TARGETS]


def test_status_shows_why_jobs_wait_and_is_watched_to_the_end(site: Site) -> None:
    site.cluster.run("scontrol", "update", "nodename=b200-1", "state=drain", "reason=test", check=True)
    assert site.project.trtx("apply", "recipe.yaml", "--until", "build", "--detach").returncode == 0
    wait_until(lambda: site.steps.counts()["build/h100/fp32 finish"], "the others are built")
    row = site.rows()["build/b200/fp32"]
    assert row["state"] == "queued"
    assert "drained" in row["reason"] or "resources" in row["reason"]
    site.cluster.run("scontrol", "update", "nodename=b200-1", "state=resume", check=True)
    with site.start("status", "--watch") as watching:
        errors = site.ends(watching)
    assert "build/b200/fp32 done" in errors
    assert errors.rstrip().endswith("ended")


def test_the_scripts_of_the_plan_are_those_that_are_submitted(site: Site) -> None:
    assert site.project.trtx("apply", "recipe.yaml", "--until", "dataset").returncode == 0
    planned = {item["group"]: item["text"] for item in site.project.json("plan", "recipe.yaml", "--scripts")["scripts"]}
    printed = site.project.trtx("plan", "recipe.yaml", "--scripts").stdout
    assert site.project.trtx("apply", "recipe.yaml").returncode == 0
    submitted = {
        path.parents[2].name: path.read_text()
        for path in site.project.folder.glob(".trtx/runs/*/slurm/cluster/groups/*/rounds/1/job.sh")
    }
    assert submitted == planned
    assert printed == "".join(planned.values())


def test_jobs_that_slurm_refuses_are_a_usage_error_and_what_it_took_is_cancelled(site: Site, fetched: Path) -> None:
    stages = {"build": {"partition": "nowhere"}}
    runner = {"type": "slurm", "python": str(site.steps.python), "environment": dict(site.steps.environment)}
    site.steps.hold("calibrate/fp32")
    write_recipe(site.project, fetched, None, runners={"cluster": {**runner, "stages": stages}})
    done = site.project.trtx("apply", "recipe.yaml")
    assert done.returncode == 2
    assert "Slurm refuses the jobs of build" in done.stderr
    wait_until(lambda: not site.cluster.jobs(), "what was taken is cancelled")


def test_real_steps_run_on_the_cluster(site: Site, fetched: Path) -> None:
    write_recipe(site.project, fetched, None)
    done = site.project.json("apply", "recipe.yaml", "--until", "convert")
    rows = {row["step"]: row for row in done["status"]}
    assert rows["convert/a100/fp32"]["state"] == "done"
    assert rows["convert/a100/fp32"]["job"]["node"]


def test_a_simulated_cluster_needs_no_slurm(site: Site, fetched: Path) -> None:
    write_recipe(site.project, fetched, None)
    done = site.project.json("apply", "recipe.yaml", "--runner", "sim", "--until", "convert", PATH="/usr/bin:/bin")
    rows = {row["step"]: row for row in done["status"]}
    assert rows["convert/a100/fp32"]["state"] == "done"
    assert rows["convert/a100/fp32"]["runner"] == "sim"
    assert rows["convert/a100/fp32"]["job"]["node"].startswith("sim-")
    refused = site.project.trtx("apply", "recipe.yaml", "--runner", "sim", "--detach")
    assert "it ends with this process" in refused.stderr
    unknown = site.project.trtx("apply", "recipe.yaml", "--runner", "clutser")
    assert "did you mean 'cluster'?" in unknown.stderr
