"""A run is driven from a machine without Slurm, through a real sshd and rsync."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.slurm import Cluster
from support.slurm_runs import Run
from support.sshd import login_node

from trtx.errors import EnvironmentProblem, UsageProblem
from trtx.runners.slurm.commands import LocalShell
from trtx.runners.slurm.outcome import TaskState
from trtx.runners.slurm.remote import Ssh, SshShell, SshWorkspace, parse_login
from trtx.runners.slurm.runner import SlurmRunner

Tell = Callable[[Run, SlurmRunner], None]


@pytest.fixture
def login(cluster: Cluster, tmp_path: Path) -> Iterator[SshShell]:
    if not all(shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("sshd", "ssh-keygen", "rsync")):
        pytest.skip("sshd or rsync is missing: run tests/install")
    environ = {"SLURM_CONF": cluster.environ["SLURM_CONF"]}
    with login_node(tmp_path / "sshd", environ) as node:
        ssh = Ssh(node.host, node.port, node.words)
        outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        yield SshShell(ssh, LocalShell(outside))
        subprocess.run([*ssh.argv, "-O", "exit", node.host], capture_output=True, check=False)
        with contextlib.suppress(OSError):
            Path(tempfile.gettempdir(), f"trtx-ssh-{os.getuid()}").rmdir()


def remote_runner(run: Run, login: SshShell, there: Path) -> SlurmRunner:
    workspace = SshWorkspace(login, run.folder, there, python=run.options.python, every_s=0.3)
    return SlurmRunner(run.options, run.folder / "slurm", login, timing=run.timing, workspace=workspace)


def test_a_run_is_driven_through_ssh(login: SshShell, run: Run, tell: Tell, tmp_path: Path) -> None:
    there = tmp_path / "a folder there's on the cluster"
    runner = remote_runner(run, login, there)
    groups = [run.group("a", {"a-1": (), "a-2": ()}), run.group("b", {"b-1": ("a-1",), "b-2": ("a-2",)})]
    runner.submit(groups)
    run.follow(runner)
    assert {item.state for item in runner.outcomes()} == {TaskState.DONE}
    assert set(run.counts().values()) == {1}
    assert (there / "steps/b-2/attempts/1/log.txt").exists()
    assert (run.folder / "steps/b-2/attempts/1/log.txt").exists()
    tell(run, runner)


def test_what_failed_is_taken_back_there_and_made_again(login: SshShell, run: Run, tell: Tell, tmp_path: Path) -> None:
    healed = tmp_path / "healed"
    run.options = dataclasses.replace(run.options, setup=(f"test -e {healed}",))
    runner = remote_runner(run, login, tmp_path / "there")
    runner.submit([run.group("a", {"a": ()})])
    run.follow(runner, until=lambda: list((tmp_path / "there/steps/a").glob("claims/*")))
    healed.touch()
    adopted = remote_runner(run, login, tmp_path / "there")
    run.follow(adopted)
    assert [item.state for item in adopted.outcomes()] == [TaskState.DONE]
    tell(run, adopted)


def test_a_login_node_that_cannot_be_reached_is_one_message(run: Run, tmp_path: Path) -> None:
    shell = SshShell(Ssh("127.0.0.1", 9), LocalShell(os.environ))
    with pytest.raises(EnvironmentProblem, match=r"cannot copy the run's files to 127\.0\.0\.1"):
        remote_runner(run, shell, tmp_path / "there").submit([run.group("a", {"a": ()})])


def test_a_login_node_is_written_as_a_url() -> None:
    assert parse_login("ssh://login.example.com") == Ssh("login.example.com")
    assert parse_login("ssh://me@login:2222") == Ssh("me@login", 2222)


@pytest.mark.parametrize(
    "url", ["login", "http://login", "ssh://", "ssh://-oProxyCommand=x", "ssh://a/b", "ssh://a:b@c"]
)
def test_what_is_no_login_node_is_refused(url: str) -> None:
    with pytest.raises(UsageProblem):
        parse_login(url)
