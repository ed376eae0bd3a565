"""Runs that are killed, stopped or starved: one message, the right exit code, and the next apply finishes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import yaml
from support.hosts import stalling_server
from support.plans import CONFIG

from trtx.files import canonical_json


def children(pid: int) -> list[int]:
    """Processes started by one process, by /proc; the worker of a step is a child of the driver."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def wait_for_worker(driver: subprocess.Popen[str], folder: Path, step: str) -> int:
    """The pid of the worker of a step, once it has started its work."""
    deadline = time.monotonic() + 120
    while True:
        assert driver.poll() is None, driver.stderr.read() if driver.stderr else ""
        assert time.monotonic() < deadline
        for pid in children(driver.pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            started = list(folder.glob(f".trtx/runs/*/steps/{step}/attempts/*/log.txt"))
            if b"trtx.stages.worker" in command and started:
                return pid
        time.sleep(0.02)


def start(project, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        project.argv(*arguments),
        cwd=project.folder,
        env=project.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_worker_killed_during_the_build_is_reported_and_the_next_apply_finishes(
    quickstart, project_on_shared_cache
) -> None:
    project = project_on_shared_cache
    recipe = yaml.safe_load((quickstart.folder / "recipes/quickstart.yaml").read_text())
    recipe["engine"]["limits"]["max_batch_size"] = 3
    (project.folder / "other.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    arguments = ("apply", "other.yaml:cpu/fp32", "--until", "build")
    with start(project, *arguments) as driver:
        worker = wait_for_worker(driver, project.folder, "build/cpu/fp32")
        time.sleep(3)  # Into the compilation, where the most is half-written.
        os.kill(worker, signal.SIGKILL)
        _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert "build/cpu/fp32 was killed by SIGKILL" in errors
    assert "Traceback" not in errors
    shown = {row["step"]: row for row in project.json("status")["status"]}
    assert shown["build/cpu/fp32"]["state"] == "failed"
    done = project.json(*arguments)
    assert {row["state"] for row in done["status"] if row["stage"] == "build"} == {"done"}


def wait_until_reached(reached: threading.Event, driver: subprocess.Popen[str]) -> None:
    """Wait for the step to be half-way; a driver that ends before shows what it said."""
    while not reached.wait(0.1):
        if driver.poll() is not None:
            raise AssertionError(driver.communicate()[1])


def stalled_recipe(project, url: str) -> None:
    recipe = {
        "schema": "trtx/v1",
        "name": "stalled",
        "model": {"source": f"{url}/model"},
        "quantization": {"fp32": {"algorithm": "none"}},
        "targets": {"cpu": {"gpu": "cpu"}},
        "engine": {"limits": {"max_batch_size": 2, "max_num_tokens": 128, "max_seq_len": 128}},
    }
    (project.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def model_files(prefix: str = "model") -> dict[str, bytes]:
    listing = b'<html><a href="config.json">c</a><a href="model.safetensors">m</a><a href="tokenizer.json">t</a></html>'
    return {
        f"{prefix}": listing,
        f"{prefix}/": listing,
        f"{prefix}/config.json": canonical_json(CONFIG),
        f"{prefix}/tokenizer.json": b"{}",
        f"{prefix}/model.safetensors": b"x" * 100_000,
    }


def test_ctrl_c_stops_the_children_and_says_how_to_go_on(project) -> None:
    with stalling_server(model_files(), stalled="model/model.safetensors") as (url, reached):
        stalled_recipe(project, url)
        with start(project, "apply", "recipe.yaml", "--until", "download") as driver:
            wait_until_reached(reached, driver)
            workers = children(driver.pid)
            driver.send_signal(signal.SIGINT)
            _, errors = driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert "run the same command again to continue" in errors
    assert "Traceback" not in errors
    assert workers and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    shown = {row["step"]: row["state"] for row in project.json("status")["status"]}
    assert shown["download/model"] == "interrupted"
    assert list((Path(project.environ["TRTX_CACHE_DIR"]) / "tmp").iterdir()) == []


def test_when_the_driver_is_killed_its_workers_end_too(project) -> None:
    with stalling_server(model_files(), stalled="model/model.safetensors") as (url, reached):
        stalled_recipe(project, url)
        with start(project, "apply", "recipe.yaml", "--until", "download") as driver:
            wait_until_reached(reached, driver)
            workers = children(driver.pid)
            assert workers
            driver.kill()
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    shown = {row["step"]: row["state"] for row in project.json("status")["status"]}
    assert shown["download/model"] == "interrupted"


def test_an_unreachable_source_is_an_environment_problem_with_one_message(project) -> None:
    stalled_recipe(project, "http://127.0.0.1:9")
    done = project.trtx("apply", "recipe.yaml")
    assert done.returncode == 6
    assert done.stderr.startswith("error: ")
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_an_environment_problem_and_nothing_is_half_written(project, tmp_path: Path) -> None:
    cache = Path(project.environ["TRTX_CACHE_DIR"])
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(cache)], check=True)
    try:
        (project.folder / "recipe.yaml").write_text((Path(__file__).parents[2] / "recipes/quickstart.yaml").read_text())
        done = project.trtx("apply", "recipe.yaml", "--until", "download")
        assert done.returncode == 6
        assert "free" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(cache.glob("entries/*/*"))
    finally:
        subprocess.run(["umount", str(cache)], check=True)


def test_a_machine_without_a_compiler_is_refused_before_anything_runs(project) -> None:
    source = Path(__file__).parents[2] / "recipes/quickstart.yaml"
    done = project.trtx("apply", source, PATH="/nonexistent")
    assert done.returncode == 6
    assert "there is no C++ compiler" in done.stderr
    assert "apt-get install g++" in done.stderr
    assert not (project.folder / ".trtx").exists()
