"""`--runner sim`: a simulated cluster has the settings of the one that it takes the place of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.plans import plan_of

from trtx.plan.make import Options
from trtx.plan.resources import needs_probe, resources
from trtx.plan.steps import load_plan

IMAGE = f"registry.example.com/trtx@sha256:{'0' * 64}"
GIB = 1 << 30


def on_cluster(settings: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Changes that put both targets on a cluster; `changes` have __ for dots."""
    made = {"targets.cpu.runner": "cluster", "targets.fast.runner": "cluster"}
    runners = {"runners": {"cluster": {"type": "slurm", **(settings or {})}}}
    return made | runners | {name.replace("__", "."): value for name, value in changes.items()}


def test_a_simulated_cluster_asks_for_what_the_targets_own_cluster_would_be_asked_for(tmp_path: Path) -> None:
    stages = {"build": {"partition": "big", "time": "2h"}}
    settings = {"account": "us", "partition": "gpu", "cpus": 1, "memory": "4GiB", "stages": stages, "throttle": 3}
    settings |= {
        "container": {"runtime": "pyxis", "image": IMAGE},
        "python": "/there/python",
        "gpus": {"h100-sxm-80gb": "x"},
    }
    settings |= {"submit_from": "ssh://login"}
    changes = on_cluster(settings, targets__cpu__job={"gpus": "h100:2"})
    real, simulated = plan_of(tmp_path, changes), plan_of(tmp_path, changes, options=Options(runner="sim"))
    for step in real.steps:
        assert simulated.step(step.id).resources == step.resources
    made = simulated.runners["sim"]
    assert (made["type"], made["throttle"], made["submit_from"]) == ("sim", 3, None)
    assert (made["options"]["account"], made["options"]["partition"]) == ("us", "gpu")
    assert (made["options"]["python"], made["options"]["container"]["runtime"]) == ("/usr/bin/python3", "none")
    assert not needs_probe(made)
    assert load_plan(json.loads(json.dumps(simulated.to_json()))) == simulated


def test_what_a_simulated_cluster_says_itself_goes_before_what_it_imitates(tmp_path: Path) -> None:
    changes = on_cluster({"partition": "gpu", "cpus": 1, "memory": "4GiB"})
    changes["runners"]["small"] = {"type": "sim", "memory": "1GiB", "throttle": 1}
    plan = plan_of(tmp_path, changes, options=Options(runner="small"))
    needs = resources(plan.step("build/cpu/fp32").resources or {})
    assert (needs.memory_bytes, needs.cpus) == (GIB, 1)
    assert (plan.runners["small"]["throttle"], plan.runners["small"]["options"]["partition"]) == (1, "gpu")


def test_a_simulated_step_has_no_more_threads_than_this_machine(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, on_cluster({"cpus": 4096}), options=Options(runner="sim"))
    here = plan_of(tmp_path)
    for step in plan.steps:
        assert step.environment["OMP_NUM_THREADS"] == here.step(step.id).environment["OMP_NUM_THREADS"]
