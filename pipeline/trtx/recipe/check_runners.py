"""Checks of runners and of what targets say about their jobs; devices and the site's runners come in as arguments."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from trtx.errors import did_you_mean
from trtx.recipe.load import LoadedRecipe
from trtx.recipe.problems import Path, Problem
from trtx.recipe.runners import ALWAYS, Container, LocalRunner, Runner, SlurmRunner, find_runner


def check_runners(loaded: LoadedRecipe, devices: Collection[str], site: Mapping[str, Runner]) -> Iterator[Problem]:
    """Problems of runners that several settings together show, or a setting and the site's configuration."""
    recipe = loaded.recipe
    for name, runner in recipe.runners.items():
        whole = find_runner(name, recipe.runners, site)
        for path, what, why, fix in runner_problems(runner if whole is None else whole, devices):
            yield loaded.problem(("runners", name, *path), what, why=why, fix=fix)
        first = loaded.points[0].recipe.runners.get(name)
        if first is not None and first != runner:
            what, fix = (
                f"the matrix gives the runner '{name}' several settings",
                "make a runner of each, and vary targets",
            )
            yield loaded.problem(("runners", name), what, fix=fix, at_key=True)
    for name, target in recipe.targets.items():
        found = find_runner(target.runner, recipe.runners, site)
        if found is None:
            known = sorted({*ALWAYS, *recipe.runners, *site})
            what, fix = f"there is no runner '{target.runner}' in runners", did_you_mean(target.runner, known)
            why = "" if site else "the site's configuration, ~/.config/trtx/config.yaml, has no runners"
            yield loaded.problem(("targets", name, "runner"), what, why=why, fix=fix)
        elif isinstance(found, LocalRunner) and target.job.model_fields_set:
            what, why = f"job has no effect on the target '{name}'", f"its runner '{target.runner}' starts no jobs"
            fix = "name a runner that is a cluster, or remove it"
            problem = loaded.problem(("targets", name, "job"), what, why=why, fix=fix, at_key=True)
            yield replace(problem, severity="warning")


def runner_problems(runner: Runner, devices: Collection[str]) -> Iterator[tuple[Path, str, str, str]]:
    """What is wrong with one runner in itself: a path inside it, what, why and fix."""
    if not isinstance(runner, SlurmRunner):
        return
    yield from _container_problems(runner.container)
    for name in runner.gpus:
        if name not in devices:
            yield ("gpus", name), f"there is no device '{name}' in the catalogue", "", did_you_mean(name, devices)


def _container_problems(container: Container) -> Iterator[tuple[Path, str, str, str]]:
    if container.runtime == "none":
        for key in ("image", "mounts"):
            if getattr(container, key) is not None:
                what, why = f"container.{key} has no effect", "the container runtime is none"
                yield ("container", key), what, why, "set container.runtime, or remove it"
    elif container.image is None:
        yield ("container",), "the container has no image", "", "add `image: registry/name@sha256:…`"
    elif container.runtime == "docker" and container.image.startswith("/"):
        what = f"docker cannot run the file {container.image}"
        yield ("container", "image"), what, "", "name an image: registry/name@sha256:…"
