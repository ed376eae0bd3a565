"""Where steps run and what their jobs ask for: the recipe over the site, and nothing here waits for a cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter
from support.plans import edited, keys, make_facts, pin, plan_of

from trtx.hardware import support
from trtx.hardware.gpus import CATALOGUE, find_gpu
from trtx.plan.make import Options, make_plan
from trtx.plan.preflight import check_fit
from trtx.plan.resources import Placement, common_product, gpu_kinds, gres_type, needs_probe, resources, slurm_options
from trtx.plan.site import read_site
from trtx.plan.steps import Plan, load_plan
from trtx.recipe.cells import make_cells
from trtx.recipe.checks import read_recipe
from trtx.recipe.problems import RecipeInvalid
from trtx.recipe.runners import OWN_OPTIONS, Runner, SimRunner, SlurmRunner, find_runner
from trtx.recipe.schema import Recipe
from trtx.runners.slurm import options as slurm
from trtx.runners.slurm.options import Container, Gpu, Mount, Resources, SlurmOptions

IMAGE = f"registry.example.com/trtx@sha256:{'0' * 64}"
GIB = 1 << 30


def on_cluster(settings: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Changes that put both targets on a cluster; `changes` have __ for dots."""
    made = {"targets.cpu.runner": "cluster", "targets.fast.runner": "cluster"}
    runners = {"runners": {"cluster": {"type": "slurm", **(settings or {})}}}
    return made | runners | {name.replace("__", "."): value for name, value in changes.items()}


def runner_of(**settings: Any) -> Runner:
    made: Runner = TypeAdapter(Runner).validate_python({"type": "slurm", **settings})
    return made


def needs_of(plan: Plan, step: str) -> Resources:
    body = plan.step(step).resources
    assert body is not None
    return resources(body)


def runners_of(plan: Plan) -> dict[str, str]:
    return {step.id: step.runner for step in plan.steps}


def test_without_a_cluster_every_step_runs_here(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert set(runners_of(plan).values()) == {"local"}
    assert {step.resources for step in plan.steps} == {None}
    assert plan.runners == {}


def test_steps_of_a_target_are_jobs_and_what_fetches_is_not(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, on_cluster())
    for step in plan.steps:
        assert step.runner == ("local" if step.stage in ("download", "dataset") else "cluster"), step.id
        assert (step.resources is None) == (step.runner == "local")
    assert set(plan.runners) == {"cluster"}


@pytest.mark.parametrize("other", ["local", "sim"])
def test_what_targets_with_several_runners_share_runs_here(tmp_path: Path, other: str) -> None:
    changes = on_cluster(targets__fast__runner=other)
    runners = runners_of(plan_of(tmp_path, changes))
    assert runners["calibrate/int8"] == runners["convert/cpu/int8"] == "local"
    assert runners["calibrate/fp32"] == runners["build/cpu/int8"] == "cluster"
    assert runners["build/fast/int8"] == runners["benchmark/fast/int8"] == other


def test_no_step_here_waits_for_a_job_even_through_a_shared_build(tmp_path: Path) -> None:
    # Two targets of one build, of different variants: its witnesses are those of the first.
    changes = {
        "quantization": {"a": {"algorithm": "none"}, "b": {"algorithm": "none", "calibration": {"samples": 16}}},
        "targets": {
            "one": {"gpu": "cpu", "quantization": ["a"], "runner": "sim"},
            "two": {"gpu": "cpu", "quantization": ["b"]},
        },
    }
    plan = plan_of(tmp_path, changes)
    runners = runners_of(plan)
    assert runners["benchmark/one/a"] == "sim"
    for step in plan.steps:
        for entry in step.inputs.values():
            assert runners[entry.step] in ("local", step.runner), (step.id, entry.step)


def test_a_runner_for_all_cells_takes_the_place_of_their_own(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, on_cluster(), options=Options(runner="sim"))
    assert set(runners_of(plan).values()) == {"local", "sim"}
    assert plan.runners["sim"]["type"] == "sim"
    assert runners_of(plan_of(tmp_path, on_cluster(), options=Options(runner="local"))) == runners_of(plan_of(tmp_path))


def test_runners_and_jobs_move_no_key_of_an_engine(tmp_path: Path) -> None:
    job = {"gpus": "h100:1", "cpus": 8, "time": "1h"}
    there = keys(plan_of(tmp_path, on_cluster({"cpus": 4}, targets__cpu__job=job)))
    assert there == keys(plan_of(tmp_path, on_cluster({"cpus": 2})))
    here = keys(plan_of(tmp_path))
    assert {name.split("/")[0] for name in here if here[name] != there[name]} == {"benchmark", "package"}


def test_a_measurement_on_a_cluster_belongs_to_its_target_and_one_of_this_machine_to_its_processor(
    tmp_path: Path,
) -> None:
    facts = make_facts(tmp_path)
    there, here = plan_of(tmp_path, on_cluster()), plan_of(tmp_path)
    assert there.step("benchmark/fast/int8").factors["machine"] == {"target": "fast"}
    assert here.step("benchmark/fast/int8").factors["machine"] == facts.machine()


def test_a_plan_with_jobs_survives_json(tmp_path: Path) -> None:
    settings = {"licenses": ["a"], "container": {"runtime": "pyxis", "image": IMAGE, "mounts": ["/a:/b:ro"]}}
    plan = plan_of(tmp_path, on_cluster(settings, targets__cpu__job={"gpus": "2"}))
    again = load_plan(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert (again.runners, again.steps[3].resources) == (plan.runners, plan.steps[3].resources)


def test_a_job_gets_what_the_target_says_else_the_stage_else_the_runner(tmp_path: Path) -> None:
    settings = {
        "partition": "all",
        "time": "1h",
        "memory": "1GiB",
        "cpus": 2,
        "stages": {"build": {"time": "4h", "memory": "8GiB"}, "calibrate": {"partition": "big"}},
    }
    plan = plan_of(tmp_path, on_cluster(settings, targets__cpu__job={"memory": "2GiB", "partition": "mine"}))
    build, convert = needs_of(plan, "build/cpu/fp32"), needs_of(plan, "convert/cpu/fp32")
    assert (build.partition, build.time_s, build.memory_bytes, build.cpus) == ("mine", 4 * 3600, 2 * GIB, 2)
    assert (convert.partition, convert.time_s, convert.memory_bytes) == ("mine", 3600, 2 * GIB)
    # Another target's, and a step that targets share, have no say of this one.
    assert needs_of(plan, "build/fast/int8").memory_bytes == 8 * GIB
    shared = needs_of(plan, "calibrate/fp32")
    assert (shared.partition, shared.memory_bytes) == ("big", GIB)


def test_what_nobody_says_is_left_to_the_cluster(tmp_path: Path) -> None:
    assert needs_of(plan_of(tmp_path, on_cluster()), "build/cpu/fp32") == Resources()


def test_jobs_that_measure_have_their_nodes_to_themselves_if_nothing_else_is_said(tmp_path: Path) -> None:
    def alone(settings: dict[str, Any]) -> set[str]:
        plan = plan_of(tmp_path, on_cluster(settings))
        return {step.stage for step in plan.steps if step.resources and step.resources["exclusive"]}

    assert alone({}) == {"benchmark"}
    assert alone({"exclusive": False}) == set()
    assert alone({"stages": {"benchmark": {"exclusive": False}, "build": {"exclusive": True}}}) == {"build"}
    assert alone({"exclusive": True}) == {"calibrate", "convert", "build", "benchmark", "package"}


def test_builds_and_benchmarks_ask_for_the_gpus_of_their_target(tmp_path: Path) -> None:
    settings = {"gpus": {"b200": "blackwell"}}
    changes = on_cluster(settings, targets__cpu__job={"gpus": "a100:2"}, targets__fast__job={"gpus": "b200-sxm:1"})
    plan = plan_of(tmp_path, changes)
    asking = {step.id: step.resources["gpu"] for step in plan.steps if step.resources and step.resources["gpu"]}
    assert {name.split("/")[0] for name in asking} == {"build", "benchmark"}
    assert needs_of(plan, "build/cpu/fp32").gpu == Gpu(2, "a100")
    assert needs_of(plan, "benchmark/fast/int8").gpu == Gpu(1, "blackwell")
    assert gpu_kinds(plan.steps, "cluster") == {"a100": 2, "blackwell": 1}


def test_a_target_for_a_gpu_asks_for_it_once_for_every_rank(tmp_path: Path) -> None:
    gpu = {"gpu": "h100", "runner": "cluster", "parallelism": {"tensor": 2}}
    recipe = Recipe.model_validate(edited(on_cluster(targets={"h100": gpu})))
    plan = make_plan(make_cells(recipe), Path("r"), pin(recipe), make_facts(tmp_path), Options(until="build"))
    assert needs_of(plan, "build/h100/fp32").gpu == Gpu(2, "h100", "H100 80GB HBM3")
    assert needs_of(plan, "convert/h100/fp32").gpu is None


def test_gres_names_follow_from_the_catalogue() -> None:
    runner = runner_of(gpus={"h200-sxm-141gb": "hopper"})
    named = {name: gres_type(runner, name) for name in ("h100-sxm-80gb", "a100", "a100-pcie-80gb", "h200", "l40s-48gb")}
    assert list(named.values()) == ["h100", "a100", "a100", "hopper", "l40s"]
    assert gres_type(runner, "rtx-pro-6000-96gb") == "rtx-pro-6000"
    assert gres_type(runner, "of_the_site") == "of_the_site"
    assert gres_type(SimRunner.model_construct(type="sim"), "gh200") == "gh200"
    for device in CATALOGUE:
        assert Gpu(1, gres_type(runner, device.name)), device.name


def test_a_product_is_what_all_names_of_a_device_begin_with() -> None:
    assert common_product(find_gpu("rtx-pro-6000")) == "RTX PRO 6000 Blackwell"
    assert common_product(find_gpu("a10")) == "A10"
    assert common_product(find_gpu("cpu")) is None


def test_steps_of_a_cluster_have_its_interpreter_and_as_many_threads_as_processors(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, on_cluster({"python": "/opt/python", "stages": {"build": {"cpus": 8}}}))
    build, convert = plan.step("build/cpu/fp32"), plan.step("convert/cpu/fp32")
    assert build.argv[0] == convert.argv[0] == "/opt/python"
    assert build.environment["OMP_NUM_THREADS"] == "8"
    assert "OMP_NUM_THREADS" not in convert.environment
    assert plan.step("download/model").argv[0] == "/usr/bin/python3"
    assert slurm_options(plan.runners["cluster"]).python == "/opt/python"
    same = plan_of(tmp_path, on_cluster())
    assert same.step("build/cpu/fp32").argv == same.step("download/model").argv


def test_settings_become_the_options_of_the_runner(tmp_path: Path) -> None:
    settings = {
        "account": "a",
        "partition": "p",
        "licenses": ["l:2"],
        "nice": 5,
        "gpu_dialect": "gpus",
        "requeue": False,
        "warn": "2min",
        "environment": {"A": "1"},
        "modules": ["m"],
        "setup": ["true"],
        "container": {"runtime": "apptainer", "image": IMAGE, "mounts": ["/a:/b:ro", "/c:/d"]},
        "sbatch": {"mail-type": "END", "spread-job": True},
        "throttle": 3,
        "submit_from": "ssh://me@login:2222",
    }
    made = plan_of(tmp_path, on_cluster(settings)).runners["cluster"]
    assert slurm_options(made) == SlurmOptions(
        account="a",
        partition="p",
        licenses=("l:2",),
        nice=5,
        gpu_dialect="gpus",
        requeue=False,
        warn_s=120,
        python="/usr/bin/python3",
        environment={"A": "1"},
        modules=("m",),
        setup=("true",),
        container=Container("apptainer", IMAGE, (Mount("/a", "/b", True), Mount("/c", "/d"))),
        extra={"mail-type": "END", "spread-job": True},
    )
    assert (made["type"], made["throttle"], made["submit_from"]) == ("slurm", 3, "ssh://me@login:2222")
    assert not needs_probe(made)


def test_settings_name_every_option_of_the_runner(tmp_path: Path) -> None:
    made = plan_of(tmp_path, on_cluster()).runners["cluster"]
    assert set(made["options"]) == {item.name for item in fields(SlurmOptions)}


def test_how_gpus_are_asked_for_is_learned_unless_it_is_said(tmp_path: Path) -> None:
    made = plan_of(tmp_path, on_cluster()).runners["cluster"]
    assert needs_probe(made)
    assert slurm_options(made, "gpus-per-node").gpu_dialect == "gpus-per-node"


def test_a_simulated_cluster_has_nodes_and_faults(tmp_path: Path) -> None:
    sim = {"type": "sim", "cpus": 2, "nodes": {"n1": {"gpu": "h100", "gpus": 8}}, "faults": {"seed": 3, "rate": 0.5}}
    plan = plan_of(tmp_path, {"targets.cpu.runner": "toy", "runners": {"toy": sim}})
    made = plan.runners["toy"]
    assert made["sim"] == {
        "nodes": {"n1": {"gpu": "h100", "gpus": 8, "slots": 4}},
        "faults": {"seed": 3, "rate": 0.5},
    }
    assert slurm_options(made) == SlurmOptions(python="/usr/bin/python3")
    assert needs_of(plan, "build/cpu/fp32").cpus == 2


def test_the_recipe_wins_over_the_site_setting_by_setting() -> None:
    site = {
        "cluster": runner_of(
            account="site",
            partition="gpu",
            modules=["a", "b"],
            environment={"A": "1", "B": "1"},
            stages={"build": {"time": "1h", "cpus": 4}},
            container={"runtime": "pyxis", "image": IMAGE},
        )
    }
    own = {"cluster": runner_of(partition="mine", modules=["c"], environment={"B": "2"}, stages={"build": {"cpus": 8}})}
    merged = find_runner("cluster", own, site)
    assert isinstance(merged, SlurmRunner)
    assert (merged.account, merged.partition, merged.modules) == ("site", "mine", ("c",))
    assert merged.environment == {"A": "1", "B": "2"}
    assert (merged.stages.build.time, merged.stages.build.cpus) == (3600, 8)
    assert merged.container.runtime == "pyxis"


def test_a_runner_of_another_type_replaces_the_site_s() -> None:
    own = {"cluster": TypeAdapter(Runner).validate_python({"type": "local"})}
    assert find_runner("cluster", own, {"cluster": runner_of(account="site")}) == own["cluster"]


def test_a_target_may_name_a_runner_that_only_the_site_has(tmp_path: Path) -> None:
    site = {"cluster": runner_of(account="site", cpus=4)}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(edited({"targets.cpu.runner": "cluster"}), sort_keys=False))
    with pytest.raises(RecipeInvalid, match="1 problem") as caught:
        read_recipe(path, support)
    assert "~/.config/trtx/config.yaml, has no runners" in caught.value.render()
    loaded = read_recipe(path, support, site=site)
    options = Options(site_runners=site)
    plan = make_plan(loaded.cells(), path, pin(loaded.recipe), make_facts(tmp_path), options)
    assert slurm_options(plan.runners["cluster"]).account == "site"
    assert needs_of(plan, "build/cpu/fp32").cpus == 4


def test_a_mistyped_runner_is_compared_with_the_recipe_s_and_the_site_s(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(edited({"targets.cpu.runner": "clustre"}), sort_keys=False))
    with pytest.raises(RecipeInvalid) as caught:
        read_recipe(path, support, site={"cluster": runner_of()})
    assert "did you mean 'cluster'?" in caught.value.render()


def test_a_container_is_judged_with_what_the_site_says_of_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(edited(on_cluster({"container": {"image": IMAGE}})), sort_keys=False))
    site = {"cluster": runner_of(container={"runtime": "pyxis", "image": "/site.sqsh"})}
    assert read_recipe(path, support, site=site).warnings == ()
    with pytest.raises(RecipeInvalid):
        read_recipe(path, support)


def test_a_matrix_cannot_give_one_runner_several_settings(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    axes = {"axes": {"account": {"path": "runners.cluster.account", "values": ["a", "b"]}}}
    path.write_text(yaml.safe_dump({**edited(on_cluster()), "matrix": axes}, sort_keys=False))
    with pytest.raises(RecipeInvalid) as caught:
        read_recipe(path, support)
    assert "the matrix gives the runner 'cluster' several settings" in caught.value.render()


def test_runners_of_the_site_are_checked_with_their_place() -> None:
    text = "runners:\n  cluster:\n    type: slurm\n    partiton: gpu\n    container: {image: trtx:latest}\n"
    with pytest.raises(RecipeInvalid) as caught:
        read_site(text, Path("/etc/trtx.yaml"))
    shown = caught.value.render()
    assert "/etc/trtx.yaml:4:5: error: unknown key 'partiton' in runners.cluster" in shown
    assert "did you mean 'partition'?" in shown
    assert "/etc/trtx.yaml:5:24: error:" in shown
    with pytest.raises(RecipeInvalid) as caught:
        read_site("runners:\n  c: {type: slurm, gpus: {h1000: h100}}\n", Path("/etc/trtx.yaml"))
    assert "/etc/trtx.yaml:2:27: error: there is no device 'h1000'" in caught.value.render()


def test_the_memory_of_a_cpu_engine_is_that_of_its_job(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(edited(on_cluster({"memory": "1MiB"})), sort_keys=False))
    loaded, facts = read_recipe(path, support), make_facts(tmp_path)
    with pytest.raises(RecipeInvalid) as caught:
        check_fit(loaded, loaded.cells(), pin(loaded.recipe), facts)
    assert "its job has 1.0 MiB" in caught.value.render()
    path.write_text(yaml.safe_dump(edited(on_cluster()), sort_keys=False))
    loaded = read_recipe(path, support)
    tiny = replace(facts, host=replace(facts.host, memory_bytes=1))
    check_fit(loaded, loaded.cells(), pin(loaded.recipe), tiny)
    with pytest.raises(RecipeInvalid):
        check_fit(loaded, loaded.cells(), pin(loaded.recipe), tiny, Placement({}, "local"))


def test_the_language_and_the_runner_refuse_the_same_options_of_sbatch() -> None:
    assert OWN_OPTIONS == slurm.OWN_OPTIONS


def test_a_plan_without_a_cluster_imports_nothing_of_slurm() -> None:
    code = "import sys, trtx.plan.make; print([name for name in sys.modules if 'slurm' in name])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
