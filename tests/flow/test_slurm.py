"""`trtx apply` on a real cluster: arrays and dependencies, drivers that die or leave, jobs that fail or are cancelled.

Jobs run the real worker with stages that only keep count, except where a test says so.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.checkpoints import make_llama
from support.engines import raw_tokenizer
from support.light_worker import LightSteps
from support.project import Project, make_project
from support.slurm import Cluster, missing_programs, wait_until

from trtx.files import write_json

TARGETS = ("a100", "b200", "h100")
STAGES = ("calibrate", "convert", "build", "benchmark", "package")
# Builds and benchmarks ask for other GPUs on each target: those are three arrays, the others one.
NUM_GROUPS = 3 + 2 * len(TARGETS)


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    if reason := missing_programs():
        pytest.skip(reason)
    # A short path: sockets have at most 108 characters.
    made = Cluster(Path(tempfile.mkdtemp(prefix="trtx-slurm-", dir="/tmp")))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model and some texts."""
    folder = tmp_path_factory.mktemp("fetched")
    tokenizer = raw_tokenizer()
    make_llama(folder / "model", vocab_size=tokenizer.get_vocab_size())
    tokenizer.save(str(folder / "model/tokenizer.json"))
    (folder / "model/tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "texts.txt").write_text("\n\n".join(f"text number {number}" for number in range(64)))
    return folder


@dataclass
class Site:
    """A project folder on a cluster, and what its jobs do."""

    project: Project
    cluster: Cluster
    steps: LightSteps

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        project = self.project
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            project.argv(*arguments), cwd=project.folder, env=dict(project.environ), text=True, **pipes
        )

    def ends(self, process: subprocess.Popen[str]) -> str:
        """What a command printed for people; fails the test when it takes too long."""
        return process.communicate(timeout=60)[1]

    def rows(self, *arguments: object) -> dict[str, dict[str, Any]]:
        return {row["step"]: row for row in self.project.json("status", *arguments)["status"]}

    def sbatch_calls(self) -> int:
        return len(list(self.project.folder.glob(".trtx/runs/*/slurm/cluster/groups/*/rounds/*/try-*")))

    def check_all_ran_once(self) -> None:
        counts = self.steps.counts()
        assert set(counts.values()) == {1}, counts
        assert {line.split("/")[0] for line in counts} == set(STAGES)
        assert sum(line.endswith(" finish") for line in counts) == 2 + 3 * len(TARGETS)


@pytest.fixture
def site(shared_cluster: Cluster, fetched: Path, tmp_path: Path) -> Iterator[Site]:
    project = make_project(tmp_path / "project", tmp_path / "cache")
    project = Project(project.folder, {**project.environ, **shared_cluster.environ, "HF_TOKEN": "hf_secret"})
    steps = LightSteps(tmp_path / "light")
    write_recipe(project, fetched, steps)
    yield Site(project, shared_cluster, steps)
    for path in (steps.folder / "hold").iterdir():
        path.unlink()
    shared_cluster.clear()


def write_recipe(project: Project, fetched: Path, steps: LightSteps | None, **changes: Any) -> None:
    runner: dict[str, Any] = {"type": "slurm", "cpus": 1, "memory": "100MiB", "time": "10min"}
    if steps is not None:
        runner |= {"python": str(steps.python), "environment": dict(steps.environment)}
    texts = {"dataset": f"file://{fetched}/texts.txt", "samples": 4, "heldout": 2, "max_length": 8}
    recipe = {
        "schema": "trtx/v1",
        "name": "small",
        "model": {"source": f"file://{fetched}/model"},
        "quantization": {"fp32": {"algorithm": "none", "calibration": texts}},
        "engine": {"limits": {"max_batch_size": 2, "max_num_tokens": 128, "max_seq_len": 128}},
        "targets": {
            name: {
                "gpu": "cpu",
                "runner": "cluster",
                "job": {"gpus": f"{name}:1"},
                "engine": {"limits": {"max_batch_size": number + 2}},
            }
            for number, name in enumerate(TARGETS)
        },
        "benchmark": {"workloads": {"chat": {"input_tokens": 8, "output_tokens": 8, "concurrency": [1]}}},
        "runners": {"cluster": runner},
        **changes,
    }
    (project.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


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


@pytest.mark.parametrize("verb", ["apply", "attach"])
@pytest.mark.parametrize("moment", ["when all is submitted", "while a build runs", "when all has ended"])
def test_a_driver_that_is_killed_is_followed_by_another(moment: str, verb: str, site: Site) -> None:
    held = [site.steps.hold("calibrate/fp32"), site.steps.hold("build/b200/fp32")]
    with site.start("apply", "recipe.yaml") as driver:
        wait_until(lambda: site.sbatch_calls() == NUM_GROUPS, "all is submitted")
        if moment != "when all is submitted":
            held.pop(0).unlink()
            wait_until(lambda: site.steps.counts()["build/b200/fp32 start"], "the build runs")
        driver.kill()
    if moment == "when all has ended":
        held.pop().unlink()
        wait_until(lambda: not site.cluster.jobs(), "all jobs have ended")
    for path in held:
        path.unlink()
    done = site.project.trtx(verb, *(["recipe.yaml"] if verb == "apply" else []))
    assert done.returncode == 0, done.stderr
    assert (site.project.folder / "out/small/b200/fp32").is_dir()
    site.check_all_ran_once()
    assert site.sbatch_calls() == NUM_GROUPS
    assert len(list(site.project.folder.glob(".trtx/runs/*"))) == 1


def test_a_driver_killed_between_two_submissions_is_continued(site: Site) -> None:
    held = site.steps.hold("calibrate/fp32")
    with site.start("apply", "recipe.yaml") as driver:
        wait_until(lambda: site.sbatch_calls() >= 2, "two groups are submitted", pause_s=0.001)
        driver.kill()
    assert site.sbatch_calls() < NUM_GROUPS
    held.unlink()
    done = site.project.trtx("apply", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert "nothing is submitted twice" in done.stderr
    site.check_all_ran_once()


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
