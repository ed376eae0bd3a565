"""Checks of runners and of what targets say about their jobs; devices and the site's runners come in as arguments."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from trtx.errors import did_you_mean
from trtx.recipe.load import LoadedRecipe
from trtx.recipe.problems import Path, Problem
from trtx.recipe.runners import ALWAYS, Container, LocalRunner, Runner, SlurmRunner, find_runner


class Wrong(NamedTuple):
    """What is wrong with a runner, at a path inside it; `at_key` when the key there is wrong and not its value."""

    path: Path
    what: str
    why: str = ""
    fix: str = ""
    at_key: bool = False


def check_runners(loaded: LoadedRecipe, devices: Collection[str], site: Mapping[str, Runner]) -> Iterator[Problem]:
    """Problems of runners that several settings together show, or a setting and the site's configuration."""
    recipe = loaded.recipe
    for name in recipe.runners:
        whole = find_runner(name, recipe.runners, site)
        for path, what, why, fix, at_key in runner_problems(whole, devices):
            yield loaded.problem(("runners", name, *path), what, why=why, fix=fix, at_key=at_key)
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


def check_points(loaded: LoadedRecipe) -> Iterator[Problem]:
    """A plan has one runner of a name, so all points of a matrix must say the same of it."""
    first, *others = loaded.points
    for name, runner in first.recipe.runners.items():
        if any(other.recipe.runners.get(name) != runner for other in others):
            what = f"the matrix gives the runner '{name}' several settings"
            fix = "write a runner for each, and vary `targets.NAME.runner`"
            yield loaded.problem(("runners", name), what, fix=fix, at_key=True)


def runner_problems(runner: Runner | None, devices: Collection[str]) -> Iterator[Wrong]:
    """What is wrong with one runner in itself."""
    if not isinstance(runner, SlurmRunner):
        return
    yield from _container_problems(runner.container)
    for name in runner.gpus:
        if name not in devices:
            what, fix = f"there is no device '{name}' in the catalogue", did_you_mean(name, devices)
            yield Wrong(("gpus", name), what, fix=fix, at_key=True)


def _container_problems(container: Container) -> Iterator[Wrong]:
    if container.runtime == "none":
        for key in ("image", "mounts"):
            if getattr(container, key) is not None:
                what, why = f"container.{key} has no effect", "the container runtime is none"
                yield Wrong(("container", key), what, why, "set container.runtime, or remove it")
    elif container.image is None:
        yield Wrong(("container",), "the container has no image", fix="add `image: registry/name@sha256:…`")
    elif container.runtime == "docker" and container.image.startswith("/"):
        what = f"docker cannot run the file {container.image}"
        yield Wrong(("container", "image"), what, fix="name an image: registry/name@sha256:…")
