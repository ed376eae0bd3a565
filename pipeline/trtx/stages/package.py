"""The package step: join an engine with its weights and write everything that it takes to deploy them."""

from __future__ import annotations

from typing import Any

from trtx.backends.inductor.evidence import CHECK_NAME, ensure_checked
from trtx.backends.inductor.package import join_engine, make_deployment, write_deployment
from trtx.files import walk_files
from trtx.runtime.folders import ENGINE_FOLDER
from trtx.runtime.scheduler import SchedulerSettings
from trtx.stages.base import StepContext
from trtx.stages.params import PackageParams

# Inputs whose keys are named in the deployment: those that enter this step's own key, so that its bytes follow.
KEYED_INPUTS = ("engine", "weights", "benchmark")


def run(params: PackageParams, context: StepContext) -> dict[str, Any]:
    """Write the deployment folder. Inputs: engine, weights, benchmark if there is one; witnesses: checkpoint, model.

    Raises UsageProblem for a base image that is not pinned, VerificationFailed when these programs with these weights
    do not answer like the model, EnvironmentProblem when a package that a server needs is not installed here.
    """
    inputs, keys, engine = context.inputs, context.keys, context.output / ENGINE_FOLDER
    deployment = make_deployment(
        name=params.name,
        cell=params.cell,
        image=params.image,
        base=params.base,
        port=params.port,
        kv_cache_bytes=params.kv_cache_bytes,
        memory_fraction=params.memory_fraction,
        scheduler=SchedulerSettings(**params.scheduler.model_dump()),
        keys={name: keys[name] for name in KEYED_INPUTS if name in keys},
        triton_base=params.triton_base,
    )
    folders = [inputs[name] for name in ("benchmark", "engine") if name in inputs]
    earlier = next((folder / CHECK_NAME for folder in folders if (folder / CHECK_NAME).is_file()), None)
    checked = ensure_checked(
        inputs["engine"],
        inputs["weights"],
        inputs["checkpoint"],
        inputs["model"],
        keys["weights"],
        earlier,
        engine / CHECK_NAME,
    )
    card = join_engine(inputs["engine"], inputs["weights"], engine)
    write_deployment(context.output, deployment, card, checked, emit=params.emit, benchmark=inputs.get("benchmark"))
    sizes = [path.stat().st_size for path in walk_files(context.output)]
    context.say(f"packaged {len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB, as {deployment.image}")
    return {"image": deployment.image, "version": deployment.version, "bytes": sum(sizes)}
