"""Whole runs on a cluster behind ssh: the driver's machine has no Slurm and another project folder than the nodes.

The driver runs in a mount namespace in which the project's folder is another; the cache is shared, as it has to be.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from support.light_worker import TESTS, LightSteps
from support.project import Project, make_project
from support.slurm import Cluster, wait_until
from support.slurm_site import NUM_GROUPS, TARGETS, QuickProject, Site, write_recipe
from support.sshd import LoginNode, login_node

from trtx.runners.slurm.remote import Ssh

# Two are fetched here, two serve all targets, three are of each.
NUM_STEPS = 2 + 2 + 3 * len(TARGETS)
MOUNT = 'mount --bind "$1" "$2" && cd "$2" && shift 2 && exec "$@"'


@dataclass(frozen=True)
class FarProject(QuickProject):
    """A project whose folder is another, `here`, for those that drive it."""

    here: Path = Path()

    def argv(self, *arguments: object) -> list[str]:
        mount = ["unshare", "-m", "sh", "-c", MOUNT, "sh", str(self.here), str(self.folder)]
        return [*mount, *super().argv(*arguments)]


@dataclass
class Far:
    """A site, its login node, and the project's folder on the driver's machine."""

    site: Site
    login: LoginNode
    here: Path

    @property
    def project(self) -> Project:
        return self.site.project

    def submitted(self) -> int:
        return len(list(self.here.glob(".trtx/runs/*/slurm/cluster/groups/*/rounds/*/submitted.json")))

    def events(self) -> Counter[str]:
        lines = [line for path in self.here.glob(".trtx/runs/*/events.jsonl") for line in path.read_text().splitlines()]
        return Counter(yaml.safe_load(line)["event"] for line in lines)


@pytest.fixture
def far(shared_cluster: Cluster, fetched: Path, tmp_path: Path) -> Iterator[Far]:
    if not all(shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("sshd", "ssh-keygen", "rsync", "unshare")):
        pytest.skip("sshd or rsync is missing: run tests/install")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("mount namespaces cannot be made here")
    here = tmp_path / "here"
    there = make_project(tmp_path / "project", tmp_path / "cache")
    steps = LightSteps(tmp_path / "light")
    with login_node(tmp_path / "sshd", {"SLURM_CONF": shared_cluster.environ["SLURM_CONF"]}) as login:
        # As ~/.ssh/config would: ssh finds its keys whatever HOME is.
        ssh = tmp_path / "bin/ssh"
        ssh.parent.mkdir()
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {login.folder}/config "$@"\n')
        ssh.chmod(0o755)
        clean = {name: value for name, value in there.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        environ = {**clean, "PATH": f"{ssh.parent}:{clean['PATH']}", "PYTHONPATH": str(TESTS)}
        project = FarProject(there.folder, environ, here)
        settings = {"submit_from": f"ssh://{login.host}:{login.port}"}
        write_recipe(Project(make_project(here, tmp_path / "cache").folder, environ), fetched, steps, settings)
        site = Site(project, shared_cluster, steps)
        yield Far(site, login, here)
        control = Ssh(login.host, login.port, login.words)
        subprocess.run([*control.argv, "-O", "exit", login.host], capture_output=True, check=False)
        with contextlib.suppress(OSError):
            Path(tempfile.gettempdir(), f"trtx-ssh-{os.getuid()}").rmdir()
    steps.release()
    shared_cluster.clear()


def check_it_is_made(far: Far) -> None:
    far.site.check_all_ran_once()
    assert far.submitted() == NUM_GROUPS
    for name in TARGETS:
        assert (far.here / f"out/small/{name}/fp32").is_dir()
    # What was written here is not replaced by what is there.
    events = far.events()
    assert (events["started"], events["done"]) == (NUM_STEPS, NUM_STEPS)
    assert not list(far.project.folder.glob(".trtx/runs/*/events.jsonl"))


def test_a_run_behind_ssh_is_left_looked_at_cancelled_in_part_and_attached_to(far: Far) -> None:
    held = [far.site.steps.hold(f"build/{name}/fp32") for name in ("h100", "b200")]
    assert far.project.trtx("apply", "recipe.yaml", "--until", "benchmark", "--detach").returncode == 0
    far.site.begun("build/h100/fp32")
    far.site.begun("build/b200/fp32")
    assert far.site.rows()["build/h100/fp32"]["state"] == "running"
    with far.site.start("logs", "-f", "build/h100/fp32") as following:
        cancelled = far.project.json("cancel", "build/b200/*")
        held.pop(0).unlink()
        printed = following.communicate(timeout=60)[0]
    assert cancelled["cancelled"] == ["build/b200/fp32"]
    assert printed.startswith("build/h100/fp32 begins")
    assert "build/h100/fp32: published" in printed
    attached = far.project.trtx("attach")
    assert attached.returncode == 130, attached.stderr
    rows = far.site.rows()
    assert [rows[f"{stage}/b200/fp32"]["state"] for stage in ("build", "benchmark")] == ["cancelled", "blocked"]
    assert rows["benchmark/h100/fp32"]["state"] == "done"


def test_a_run_is_applied_through_ssh_although_the_connection_breaks_twice(far: Far) -> None:
    held = [far.site.steps.hold("calibrate/fp32"), far.site.steps.hold("build/h100/fp32")]
    with far.site.start("apply", "recipe.yaml") as driver:
        wait_until(lambda: far.submitted() >= 2, "two groups are submitted", pause_s=0.002)
        far.login.stop()
        assert far.submitted() < NUM_GROUPS
        held.pop(0).unlink()
        far.login.start()
        wait_until(lambda: far.submitted() == NUM_GROUPS, "all is submitted", seconds=60)
        far.site.begun("build/h100/fp32")
        far.login.stop()
        held.pop().unlink()
        wait_until(lambda: not far.site.jobs(), "all jobs have ended meanwhile")
        assert driver.poll() is None
        far.login.start()
        errors = far.site.ends(driver)
    assert driver.returncode == 0, errors
    assert "squeue gave no answer" in errors or "sbatch" in errors
    check_it_is_made(far)
    shown = far.site.rows()["build/h100/fp32"]
    assert (shown["state"], shown["job"]["node"][:4]) == ("done", "h100")
    assert "build/h100/fp32 begins" in far.project.trtx("logs", "build/h100/fp32").stdout


def test_a_login_node_that_does_not_see_the_cache_is_refused_with_its_place(far: Far, tmp_path: Path) -> None:
    """The driver's cache is in a folder that is another one there."""
    elsewhere = far.project.folder / "cache"
    done = far.project.trtx("apply", "recipe.yaml", TRTX_CACHE_DIR=str(elsewhere))
    assert done.returncode == 2
    assert "does not see the cache" in done.stderr
    assert "recipe.yaml:" in done.stderr
    assert far.submitted() == 0
