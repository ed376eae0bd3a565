"""Cells, what they are pinned to, facts and cache manifests → the lock. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from trtx import __version__
from trtx.cache.manifest import Manifest
from trtx.errors import UsageProblem, VerificationFailed, did_you_mean
from trtx.plan.facts import Facts
from trtx.plan.lock import (
    Lock,
    LockedBuild,
    LockedClient,
    LockedContainer,
    LockedDataset,
    LockedDraw,
    LockedFile,
    LockedModel,
    LockedRows,
    LockedTools,
    dataset_title,
    draw_title,
    model_title,
)
from trtx.plan.releases import needs_texts
from trtx.plan.resolve import PinnedSources
from trtx.plan.steps import Plan, Step
from trtx.recipe.cells import Cell
from trtx.stages.params import PARAMS, BenchmarkParams, DatasetParams

# Stages whose entries a lock tells facts of; see make_lock.
TELLING_STAGES = ("download", "dataset", "build")
# Stages whose keys hold facts of one machine or one installation, or keys that do.
LOCAL_STAGES = ("benchmark", "package")
# What `trtx lock --upgrade` can move as a whole.
KINDS = {"model": "models", "dataset": "datasets", "container": "containers", "build": "builds"}
ALL = "all"

Item = TypeVar("Item")


def make_lock(
    old: Lock | None,
    cells: Sequence[Cell],
    sources: PinnedSources,
    facts: Facts,
    plan: Plan,
    manifests: Mapping[str, Manifest],
    *,
    whole: bool,
) -> Lock:
    """The lock of these cells; `plan` has all their steps, `manifests` (by step id) those that tell something.

    What is not known now and was known of the same thing stays. Unless the cells are the `whole` recipe, what the old
    lock says of others stays too.

    Raises VerificationFailed when a source delivered other bytes than the old lock has for the same identity.
    """
    before = old or Lock()
    known = {step.key: manifests[step.id] for step in plan.steps if step.id in manifests}
    keep: dict[str, Any] | None = {} if whole else None
    return Lock(
        benchmark=LockedClient(trtx=__version__, code=BenchmarkParams.code_version),
        builds=_merge(before.builds, _make_builds(before, plan, known, whole=whole), keep),
        containers=_merge(before.containers, _make_containers(before, cells, sources), keep),
        datasets=_merge(before.datasets, _make_datasets(before, cells, sources, plan, known, whole=whole), keep),
        entries=_make_entries(before, plan, whole=whole),
        probes=_merge(before.probes, _make_probes(sources), keep),
        models=_merge(before.models, _make_models(before, cells, sources, plan, known), keep),
        runners={"local": _make_tools(before.runners.get("local"), facts, whole=whole)},
        stages={stage: params.code_version for stage, params in PARAMS.items()},
    )


def _merge(old: Mapping[str, Item], new: Mapping[str, Item], kept: Mapping[str, Item] | None) -> dict[str, Item]:
    return {**(old if kept is None else kept), **new}


def _make_models(
    old: Lock, cells: Iterable[Cell], sources: PinnedSources, plan: Plan, known: Mapping[str, Manifest]
) -> dict[str, LockedModel]:
    found = {}
    for cell in cells:
        model, pinned = cell.recipe.model, sources.model_of(cell).source
        title = model_title(model)
        before = old.models.get(title)
        same = before if before and before.identity == pinned.identity else None
        wanted = {"url": pinned.url, "identity": pinned.identity, "allow_pickle": model.allow_pickle}
        step = _find_step(plan, "download", wanted)
        files = _files(known[step.key]) if step and step.key in known else {}
        if same and files and not pinned.toolchain:
            _refuse_other_bytes(f"model {title}", same.files, files)
        found[title] = LockedModel(identity=pinned.identity, files=files or (same.files if same else {}))
    return found


def _make_datasets(
    old: Lock,
    cells: Iterable[Cell],
    sources: PinnedSources,
    plan: Plan,
    known: Mapping[str, Manifest],
    *,
    whole: bool,
) -> dict[str, LockedDataset]:
    found: dict[str, LockedDataset] = {}
    code_is_same = old.stages.get("dataset") == PARAMS["dataset"].code_version
    for cell in filter(needs_texts, cells):
        data, pinned = cell.recipe.quantization[cell.variant].calibration, sources.dataset_of(cell)
        title, draw = dataset_title(data), draw_title(data)
        before = old.datasets.get(title)
        draws = before.draws if before and before.identity == pinned.identity and code_is_same else {}
        taken = dict(found[title].draws) if title in found else {} if whole else dict(draws)
        chosen = data.model_dump(include={"split", "column", "samples", "heldout", "seed"})
        step = _find_step(plan, "dataset", {"url": pinned.url, "identity": pinned.identity, **chosen})
        if step and step.key in known:
            taken[draw] = _make_draw(known[step.key])
            if draw in draws:
                _refuse_other_bytes(f"dataset {title}", draws[draw].files, taken[draw].files)
        elif draw in draws:
            taken[draw] = draws[draw]
        found[title] = LockedDataset(identity=pinned.identity, draws=taken)
    return found


def _make_draw(manifest: Manifest) -> LockedDraw:
    summary = manifest.summary
    counts = {"calibration": summary["calibration_rows"], "heldout": summary["heldout_rows"]}
    rows = {use: LockedRows(count=count, numbers=summary["rows"].get(use)) for use, count in counts.items()}
    return LockedDraw(files=_files(manifest), rows=rows)


def _files(manifest: Manifest) -> dict[str, LockedFile]:
    return {record.path: LockedFile(bytes=record.size, sha256=record.sha256) for record in manifest.files}


def _refuse_other_bytes(what: str, old: Mapping[str, LockedFile], new: Mapping[str, LockedFile]) -> None:
    different = sorted(path for path in old.keys() & new.keys() if old[path] != new[path])
    if different:
        raise VerificationFailed(
            f"{what}: {different[0]} is not the file that the lock names",
            why=f"the lock has sha256 {old[different[0]].sha256}, this one has {new[different[0]].sha256}",
            fix="the source gave other bytes for the same name: find out why before you trust either",
        )


def _make_builds(old: Lock, plan: Plan, known: Mapping[str, Manifest], *, whole: bool) -> dict[str, LockedBuild]:
    """Builds by step id. A part calls a build that cells share after its own first cell: the whole's name stays."""
    names = {} if whole else {build.key: name for name, build in old.builds.items()}
    found = {}
    for step in plan.steps:
        name = names.get(step.key, step.id)
        before = old.builds.get(name)
        if "backend" in step.params:  # What it chose while it built stands in its own folder.
            continue
        if step.stage == "build" and step.key in known:
            choices = known[step.key].summary["choices"]
            found[name] = LockedBuild(arch=step.params["arch"], key=step.key, choices=choices)
        elif step.stage == "build" and before and before.key == step.key:
            found[name] = before
    return found


def _make_containers(old: Lock, cells: Iterable[Cell], sources: PinnedSources) -> dict[str, LockedContainer]:
    """Base images, and images of releases; one that the recipe names by digest needs nobody's answer."""
    found = {}
    for reference in dict.fromkeys(name for cell in cells for name in sources.references_of(cell)):
        known = sources.digest_of(reference)
        found[reference] = LockedContainer(digest=known) if known else old.containers.get(reference, LockedContainer())
    return found


def _make_probes(sources: PinnedSources) -> dict[str, str]:
    """Files of `trtx probe`, as the recipe names them."""
    return {name[1]: pinned.digest for name, pinned in sources.releases.items() if name[1] and pinned.digest}


def _make_tools(old: LockedTools | None, facts: Facts, *, whole: bool) -> LockedTools:
    """What the steps of this machine are run with; a part of a recipe may need fewer distributions than the whole."""
    others = {} if whole or old is None else old.distributions
    return LockedTools(
        compiler=facts.compiler,
        distributions={**others, **facts.versions},
        python=facts.pins["python"],
        driver=facts.driver,
    )


def _make_entries(old: Lock, plan: Plan, *, whole: bool) -> dict[str, str]:
    """Keys by step id. Steps of a part may be called otherwise in the whole (two datasets called alike)."""
    if whole:
        return {step.id: step.key for step in plan.steps}
    present = set(old.entries.values())
    return old.entries | {step.id: step.key for step in plan.steps if step.key not in present}


def _find_step(plan: Plan, stage: str, wanted: Mapping[str, Any]) -> Step | None:
    """The step of a stage whose parameters are these."""
    steps = (step for step in plan.steps if step.stage == stage)
    return next((step for step in steps if all(step.params.get(name) == value for name, value in wanted.items())), None)


def is_told(lock: Lock, step: Step) -> bool:
    """Whether a lock has what a step of a fetching stage would tell."""
    identity = step.params["identity"]
    if step.stage == "download":
        return any(model.files for model in lock.models.values() if model.identity == identity)
    title = draw_title(DatasetParams.model_validate(step.params))
    return any(title in dataset.draws for dataset in lock.datasets.values() if dataset.identity == identity)


def list_local_steps(plan: Plan) -> set[str]:
    """Steps whose keys differ from machine to machine: what is measured, what holds trtx's own files, and what is made
    of a folder of this machine. Two machines with the same lock disagree on them."""
    local: set[str] = set()
    for step in plan.steps:
        inputs = {entry.step for entry in step.inputs.values() if not entry.witness}
        of_folder = str(step.params.get("url", "")).startswith("file://")
        if step.stage in LOCAL_STAGES or of_folder or inputs & local:
            local.add(step.id)
    return local


def without(lock: Lock, names: Iterable[str]) -> Lock:
    """A lock less the pins to look up anew: kinds (of KINDS, or all), or single ones by their name.

    Raises UsageProblem for a name that is none.
    """
    sections: dict[str, dict[str, Any]] = {section: dict(getattr(lock, section)) for section in KINDS.values()}
    known = [ALL, *KINDS, *(name for section in sections.values() for name in section)]
    for name in names:
        chosen = [title for section in sections.values() for title in section if title.partition("@")[0] == name]
        if name == ALL:
            for section in sections.values():
                section.clear()
        elif name in KINDS:
            sections[KINDS[name]].clear()
        elif name in known or chosen:
            for section in sections.values():
                for title in (name, *chosen):
                    section.pop(title, None)
        else:
            raise UsageProblem(
                f"there is no pin '{name}' to upgrade",
                why="versions of tools are recorded as they are installed",
                fix=did_you_mean(name, known),
            )
    return lock.model_copy(update=sections)
