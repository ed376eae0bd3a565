"""Whether the interpreter of a cluster's jobs is what the plan was made with, asked once before anything is submitted.

The jobs themselves check it again, each on its node: see trtx.stages.toolchain.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtx.cache.store import Store
from trtx.errors import EnvironmentProblem
from trtx.files import canonical_json, sha256_bytes, write_json
from trtx.plan.cluster import inherited_variables
from trtx.plan.cluster_open import open_shell
from trtx.plan.resources import slurm_options
from trtx.plan.steps import Plan
from trtx.plan.survey import OPEN, StepStatus
from trtx.runners.slurm.interpreter import ask_interpreter
from trtx.stages.toolchain import is_of_interpreter

PATIENCE_S = 60.0
# Not asked for on a login node, whose compilers may be others than a node's.
COMPILERS = frozenset({"c++", "nvcc"})


@dataclass(frozen=True)
class Mismatch:
    """What is wrong with a runner's interpreter."""

    runner: str
    what: str
    fix: str


def find_mismatches(plan: Plan, statuses: Iterable[StepStatus], environ: Mapping[str, str]) -> Iterator[Mismatch]:
    """What is wrong with the interpreters of the runners that have steps to run."""
    wanted: dict[str, dict[str, str]] = {}
    inherited: dict[str, set[str]] = {}
    for status in statuses:
        name = status.step.runner
        if status.state not in OPEN or plan.runners.get(name, {}).get("type") != "slurm":
            continue
        wanted.setdefault(name, {}).update(status.step.factors["toolchain"])
        inherited.setdefault(name, set()).update(filter(inherited_variables(plan, name), status.step.inherit))
    for name, versions in wanted.items():
        asked = {key: version for key, version in versions.items() if is_of_interpreter(key) and key not in COMPILERS}
        memory = _memory(plan, name, asked, environ)
        if memory.exists():
            continue
        found = find_mismatch(name, plan.runners[name], asked, sorted(inherited[name]), environ)
        found = found or _find_other_cache(plan, name, environ)
        if found is not None:
            yield found
        else:
            with contextlib.suppress(OSError, EnvironmentProblem):
                Store(Path(plan.cache_dir)).prepare()
                write_json(memory, asked)


def find_mismatch(
    name: str,
    settings: Mapping[str, Any],
    wanted: Mapping[str, str],
    exported: Iterable[str],
    environ: Mapping[str, str],
) -> Mismatch | None:
    """Ask a runner's interpreter for `wanted`, versions by name; None when it has them, or nothing can be learned."""
    options = slurm_options(settings)
    facts = ask_interpreter(
        open_shell(settings, environ), options, sorted(wanted), sorted(exported), timeout_s=PATIENCE_S
    )
    where = f" at {settings['submit_from']}" if settings["submit_from"] else ""
    if facts.problem:
        fix = f"set runners.{name}.python to an interpreter there that has this version of trtx, or install it"
        return Mismatch(name, f"{facts.problem}{where}", fix)
    have = facts.versions
    wrong = [f"{key} {have.get(key)} instead of {wanted[key]}" for key in wanted if have.get(key) != wanted[key]]
    if not wrong or not have:
        return None
    what = f"{options.python}{where} has {', '.join(wrong)}"
    return Mismatch(name, what, f"install the versions that this plan was made with, or set runners.{name}.python")


def _find_other_cache(plan: Plan, name: str, environ: Mapping[str, str]) -> Mismatch | None:
    """Whether the login node sees another cache than this machine, so that jobs would find none of their inputs."""
    settings = plan.runners[name]
    if not settings["submit_from"]:
        return None
    Store(Path(plan.cache_dir)).prepare()
    marker = Path(plan.cache_dir) / "slurm" / f"seen-{secrets.token_hex(8)}"
    write_json(marker, {})
    try:
        answer = open_shell(settings, environ).call(["test", "-e", str(marker)], timeout_s=PATIENCE_S)
    finally:
        marker.unlink()
    if answer.code != 1:
        return None
    what = f"{settings['submit_from']} does not see the cache {plan.cache_dir} of this machine"
    return Mismatch(name, what, "set TRTX_CACHE_DIR to a folder that this machine, the login node and all nodes share")


def _memory(plan: Plan, name: str, wanted: Mapping[str, str], environ: Mapping[str, str]) -> Path:
    """Where it is kept that an interpreter has what is wanted."""
    settings = plan.runners[name]
    names = ("python", "environment", "modules", "setup", "container")
    asked = [settings["submit_from"], environ.get("SLURM_CONF"), *(settings["options"][name] for name in names), wanted]
    return Path(plan.cache_dir) / "slurm" / f"python-{sha256_bytes(canonical_json(asked))[:16]}.json"
