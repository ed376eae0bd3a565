"""A plan kept in a file: `trtx plan -o plan.json`, and `trtx apply plan.json` that runs exactly that or refuses.

A saved plan is refused when something it was made from moved since: what is run would not be what its keys say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trtx.errors import EnvironmentProblem, UsageProblem, VerificationFailed
from trtx.files import canonical_json, disk_errors, sha256_bytes, sha256_file, write_text
from trtx.models.sources.base import Kind, Request, find_source, is_local, on_hub
from trtx.plan.environment import FETCHING_STAGES
from trtx.plan.facts import Facts
from trtx.plan.steps import SCHEMA, Plan, Step, load_plan
from trtx.stages.find_params import find_params, tables_digest
from trtx.stages.toolchain import OF_IMAGE, TABLES

SUFFIX = ".json"
# What stands beside the content of a plan: `trtx plan -o json` adds how things stand.
BESIDE = ("digest", "status", "remotes", "releases", "scripts")


def is_saved_plan(argument: str) -> bool:
    """Whether an argument of `apply` is a plan rather than a recipe."""
    return argument.endswith(SUFFIX)


def save_plan(path: Path, plan: Plan) -> None:
    """Write a plan for `open_plan`. Raises EnvironmentProblem when that is not possible."""
    with disk_errors(path):
        write_text(path, json.dumps(seal(plan.to_json()), indent=1, ensure_ascii=False) + "\n")


def seal(body: Mapping[str, Any]) -> dict[str, Any]:
    """A plan as JSON with the SHA-256 of its content: it is run exactly as it was planned, or not at all.

    It finds what was edited, cut or merged, and keeps nobody out who means to deceive.
    """
    return {**body, "digest": _digest(body)}


def _digest(body: Mapping[str, Any]) -> str:
    return sha256_bytes(canonical_json({name: value for name, value in body.items() if name not in BESIDE}))


def open_plan(path: Path) -> Plan:
    """Read a saved plan. Raises UsageProblem when it is none."""
    try:
        body = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageProblem(
            f"the plan {path} cannot be read",
            why=error.strerror or "",
            fix="`trtx plan RECIPE -o plan.json` writes one",
        ) from error
    except ValueError as error:
        raise UsageProblem(f"{path} is not a plan", why=f"it is not JSON: {error}") from error
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        found = body.get("schema") if isinstance(body, dict) else None
        why = f"its schema is {found}, and this trtx reads {SCHEMA}" if found else "it has no schema"
        raise UsageProblem(f"{path} is not a plan", why=why, fix="`trtx plan RECIPE -o plan.json` writes one")
    try:
        plan = load_plan(body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_whole(path, f"it was cut or edited ({type(error).__name__}: {error})") from error
    if body.get("digest") != _digest(body):
        raise _not_whole(path, "it was edited: its digest is not that of its content")
    return plan


def _not_whole(path: Path, why: str) -> UsageProblem:
    return UsageProblem(f"{path} is not a whole plan", why=why, fix="make it again with `trtx plan`")


def refuse_moved(plan: Plan, facts: Facts, environ: Mapping[str, str]) -> None:
    """Raises UsageProblem that names everything the plan was made from and that is different now."""
    if moved := list(dict.fromkeys(find_moved(plan, facts, environ))):
        raise UsageProblem(
            "the plan is out of date: " + (moved[0] if len(moved) == 1 else f"{len(moved)} inputs moved since"),
            why="" if len(moved) == 1 else "\n       ".join(moved),
            fix=f"look at it again: trtx plan {plan.recipe}",
        )


def find_moved(plan: Plan, facts: Facts, environ: Mapping[str, str]) -> Iterator[str]:
    """What is different from when a plan was made, one sentence each: files, sources, tools, the machine."""
    yield from _moved_files(plan)
    for step in plan.steps:
        yield from _moved_tools(step, facts)
        if step.stage in FETCHING_STAGES:
            yield from _moved_source(step, environ)


def _moved_files(plan: Plan) -> Iterator[str]:
    for name, digest in plan.files.items():
        path = Path(name)
        # A plan is complete without its recipe, so that it can be run where the recipe is not.
        if path.is_file() and sha256_file(path) != digest:
            yield f"{name} was edited"


def _moved_tools(step: Step, facts: Facts) -> Iterator[str]:
    code = find_params(step.stage, step.params).code_version
    if step.factors["code"] != code:
        yield f"the code of stage {step.stage}: version {step.factors['code']} → {code}"
    now, machine = facts.toolchain(), facts.machine()
    if TABLES in step.factors["toolchain"]:
        try:
            now[TABLES] = tables_digest(step.stage, step.params, step.environment)
        except (EnvironmentProblem, VerificationFailed) as error:
            yield error.what
            return
    for name, version in step.factors["toolchain"].items():
        # What an image has is decided by its digest, which is in the params.
        if not name.startswith(OF_IMAGE) and now.get(name) != version:
            yield f"{name}: {_short(version)} → {_short(now.get(name, 'absent'))}"
    for name, value in step.factors["machine"].items():
        # A measurement on a cluster is not of this machine.
        if name in machine and machine[name] != value:
            yield f"the machine's {name}: {value} → {machine[name]}"
    # A cluster has an interpreter of its own, which may be at another place.
    if step.resources is None and step.argv[0] != facts.python:
        yield f"the Python that runs steps: {step.argv[0]} → {facts.python}"


def _moved_source(step: Step, environ: Mapping[str, str]) -> Iterator[str]:
    url, identity = step.params["url"], step.params["identity"]
    # A source that cannot be asked now is asked when it is fetched, and refused there.
    if on_hub(url) or ("TRTX_OFFLINE" in environ and not is_local(url)):
        return
    kind: Kind = "model" if step.stage == "download" else "dataset"
    request = Request(
        url,
        kind,
        allow_pickle=step.params.get("allow_pickle", False),
        split=step.params.get("split"),
        environ=environ,
    )
    now = find_source(url).resolve(request).identity
    if now != identity:
        yield f"{url}: {_short(identity)} → {_short(now)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:16] + "…"
