"""What a plan of TensorRT-LLM takes from files and machines: probes, locks, images, drivers, memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.plans import make_facts
from support.registry import digest_of, make_index, serve_registry
from support.trtllm_recipes import find_all, write_model
from support.trtllm_refusals import make_recipe, quantized

from trtx.backends.tensorrt_llm.probes import PROBE_VARIABLE
from trtx.backends.tensorrt_llm.surface import surface_to_json
from trtx.backends.tensorrt_llm.tables import load_surface
from trtx.cli.main import main
from trtx.files import sha256_file
from trtx.plan.lock import Lock, LockedContainer, lock_path, read_lock, write_lock
from trtx.plan.steps import Plan, load_plan

DIGEST = "sha256:" + "a" * 64
RELEASE_IMAGE = "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"


def write_probe(path: Path, version: str, *, without: str = "") -> Path:
    """A file as `trtx probe` writes it, of a release that has what 1.3.0rc3 has less the tools of a name."""
    surface = surface_to_json(load_surface("1.3.0rc3"))
    tools = {key: tool for key, tool in surface["tools"].items() if not without or not key.startswith(without)}
    path.write_text(
        json.dumps(
            {
                "schema": "trtx.probe/v1",
                "surface": {**surface, "version": version, "tools": tools},
                "covered": ["tensorrt_llm"],
            }
        )
    )
    return path


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Plan]:
    monkeypatch.setenv("TRTX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    model = write_model(tmp_path / "models", "llama-8b")

    def make(text: str, *words: str) -> Plan:
        Path("recipe.yaml").write_text(text.replace("hf://owner/name", f"file://{model}"))
        code = main(["plan", "recipe.yaml", "-o", "json", *words])
        out, err = capsys.readouterr()
        assert code == 0, err
        return load_plan(json.loads(out))

    return make


def errors(text: str, tmp_path: Path, driver: str | None = None, memory_bytes: int = 1 << 50) -> list[str]:
    facts = make_facts(tmp_path)
    facts = replace(facts, driver=driver, host=replace(facts.host, memory_bytes=memory_bytes))
    _, found = find_all(text, "llama-70b", facts, tmp_path)
    return [f"{problem.severity}: {problem.render()}" for problem in found]


def test_a_driver_that_the_image_s_cuda_does_not_run_on_is_refused(tmp_path: Path) -> None:
    text = make_recipe(target="parallelism: {tensor: 4}")
    [found] = [one for one in errors(text, tmp_path, "550.54.15") if "rule driver" in one]
    assert found.startswith("error: ")
    assert "recipe.yaml:10:12" in found
    assert "the driver 550.54.15 of this machine" in found
    assert "needs 580 or newer" in found
    [found] = [one for one in errors(text, tmp_path, "580.65.06") if "rule driver" in one]
    assert found.startswith("warning: ")
    assert "comes with 590.44.01" in found
    assert not [one for one in errors(text, tmp_path, "595.10") if "rule driver" in one]


def test_quantizing_more_than_the_host_s_memory_holds_is_refused(tmp_path: Path) -> None:
    text = make_recipe(variant=quantized("fp8"), target="parallelism: {tensor: 4}")
    [found] = errors(text, tmp_path, memory_bytes=64 << 30)[:1]
    assert found.startswith("error: ")
    assert "quantizing needs 131.4 GiB of memory, and this machine has 64.0 GiB" in found
    assert "rule quantizing-host-memory of TensorRT-LLM 1.2.1" in found
    assert not [one for one in errors(text, tmp_path) if one.startswith("error")]


def test_a_job_with_too_little_memory_to_quantize_is_refused(tmp_path: Path) -> None:
    runners = "    runner: cluster\nrunners:\n  cluster: {type: slurm, stages: {calibrate: {memory: 32GiB}}}\n"
    text = make_recipe(variant=quantized("fp8"), target="parallelism: {tensor: 4}", extra=runners)
    [found] = [one for one in errors(text, tmp_path) if one.startswith("error")]
    assert "the job of calibrate has 32.0 GiB" in found


def test_engines_of_a_release_after_the_engine_backend_are_refused(tmp_path: Path) -> None:
    write_probe(tmp_path / "new.json", "1.3.0rc25", without="trtllm-build")
    text = make_recipe("1.3.0rc25", "engine", engine="probe: new.json", container="  container: a.example/b:1\n")
    [found] = [one for one in errors(text, tmp_path) if one.startswith("error")]
    assert "recipe.yaml:11:9: error: t/v: TensorRT-LLM 1.3.0rc25 builds no TensorRT engines" in found
    assert "removed after 1.3.0rc20" in found
    assert "engine.flow: pytorch" in found
    served = text.replace("flow: engine", "flow: pytorch").replace(
        "gpu: h100", "gpu: h100\n    parallelism: {tensor: 4}"
    )
    assert not [one for one in errors(served, tmp_path) if one.startswith("error")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.json", None, "is no result of trtx probe"),
        ("broken.json", "{", "is no result of trtx probe"),
        ("other.json", "1.2.0", "describes TensorRT-LLM 1.2.0, not 1.2.1"),
    ],
)
def test_a_file_that_is_no_probe_of_the_release_is_refused_where_it_is_named(
    tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    if content == "1.2.0":
        write_probe(tmp_path / name, content)
    elif content is not None:
        (tmp_path / name).write_text(content)
    [found] = errors(make_recipe(engine=f"probe: {name}"), tmp_path)
    assert said in found
    assert "recipe.yaml:13:10" in found


def test_a_tool_that_the_probed_image_lacks_is_refused_when_a_step_would_run_it(tmp_path: Path) -> None:
    write_probe(tmp_path / "probe.json", "1.2.1", without="trtllm-bench")
    load = "benchmark: {workloads: {chat: {input_tokens: 8, output_tokens: 8, concurrency: [1]}}}\n"
    text = make_recipe(engine="probe: probe.json", target="parallelism: {tensor: 4}", extra=load)
    [found] = [one for one in errors(text, tmp_path) if one.startswith("error")]
    assert "TensorRT-LLM 1.2.1 has no trtllm-bench" in found
    assert "rule command-line of TensorRT-LLM 1.2.1" in found
    assert not [one for one in errors(text.replace(load, ""), tmp_path) if one.startswith("error")]


def test_a_probe_is_a_factor_by_its_digest_and_its_file_is_told_to_the_steps(
    tmp_path: Path, plan: Callable[..., Plan]
) -> None:
    plain = plan(make_recipe())
    probe = write_probe(tmp_path / "probe.json", "1.2.1")
    first = plan(make_recipe(engine="probe: probe.json")).step("build/t/v")
    assert first.params["spec"]["probe"] == sha256_file(probe)
    assert first.environment[PROBE_VARIABLE] == str(probe)
    assert first.key != plain.step("build/t/v").key
    moved = tmp_path / "elsewhere.json"
    probe.rename(moved)
    again = plan(make_recipe(engine="probe: elsewhere.json")).step("build/t/v")
    assert (again.key, again.environment[PROBE_VARIABLE]) == (first.key, str(moved))


def test_a_lock_has_the_image_with_its_digest_and_the_probe(tmp_path: Path, plan: Callable[..., Plan]) -> None:
    probe = write_probe(tmp_path / "probe.json", "1.2.1")
    text = make_recipe(engine="probe: probe.json")
    before = plan(text)
    write_lock(lock_path(Path("recipe.yaml")), Lock(containers={RELEASE_IMAGE: LockedContainer(digest=DIGEST)}))
    after = plan(text)
    container = after.step("build/t/v").params["spec"]["container"]
    assert container == {"image": RELEASE_IMAGE, "digest": DIGEST}
    assert after.step("build/t/v").key != before.step("build/t/v").key
    assert main(["lock", "recipe.yaml"]) == 0
    lock = read_lock(lock_path(Path("recipe.yaml")))
    assert lock is not None
    assert lock.containers == {RELEASE_IMAGE: LockedContainer(digest=DIGEST)}
    assert lock.probes == {"probe.json": sha256_file(probe)}
    assert lock.datasets == {}


def test_lock_asks_the_registry_of_a_named_container_for_its_digest(plan: Callable[..., Plan]) -> None:
    manifest = make_index("trtllm")
    with serve_registry() as registry:
        registry.manifests["trtllm:1"] = manifest
        image = f"{registry.address}/trtllm:1"
        text = make_recipe(container=f"  container: {image}\n")
        assert plan(text).step("build/t/v").params["spec"]["container"] == {"image": image, "digest": None}
        assert main(["lock", "recipe.yaml"]) == 0
    locked = plan(text).step("build/t/v").params["spec"]["container"]
    assert locked == {"image": image, "digest": digest_of(manifest)}


SITE = """\
runners:
  cluster:
    type: slurm
    partition: gpu
    container: {runtime: pyxis, image: "registry.example.com/trtx@sha256:%s"}
""" % ("b" * 64)
ON_CLUSTER = "    runner: cluster\n" + SITE


def test_steps_of_a_release_run_in_its_image_and_others_in_the_runner_s(plan: Callable[..., Plan]) -> None:
    image = f"registry.example.com/trtllm:1@{DIGEST}"
    text = make_recipe(
        variant=quantized("int8_wo", data="calibration: {dataset: 'demo://docs'}"),
        extra=ON_CLUSTER,
        container=f"  container: {image}\n  converter: release\n",
    )
    images = {step.stage: step.resources["image"] for step in plan(text).steps if step.resources}
    assert images == {"convert": image, "build": image, "package": image}
    made_here = plan(text.replace("converter: release", "converter: trtx"))
    images = {step.stage: step.resources["image"] for step in made_here.steps if step.resources}
    # trtllm-build rounds such weights itself: nothing is calibrated.
    assert images == {"convert": "", "build": image, "package": image}
    calibrated = plan(text.replace("converter: release", "converter: trtx").replace("int8_wo", "fp8"))
    images = {step.stage: step.resources["image"] for step in calibrated.steps if step.resources}
    assert images == {"calibrate": "", "convert": "", "build": image, "package": image}


def test_an_image_without_a_digest_runs_in_the_runner_s_own(plan: Callable[..., Plan]) -> None:
    step = plan(make_recipe(extra=ON_CLUSTER)).step("build/t/v")
    assert step.resources is not None
    assert step.resources["image"] == ""


def test_validate_refuses_what_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(make_recipe(engine="plugins: {gemm_plugn: auto}"))
    assert main(["validate", str(path)]) == 2
    assert "has no --gemm_plugn" in capsys.readouterr().err


def test_flags_come_from_the_preset_or_from_the_line_that_states_them(
    plan: Callable[..., Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    plan(
        make_recipe(
            engine="preset: long-context\nplugins: {gemm_plugin: auto}\nbuild_options: {strip_plan: true}",
            target="engine: {plugins: {nccl_plugin: auto}}",
        )
    )
    assert main(["why", "recipe.yaml", "build/t/v", "-o", "json"]) == 0
    [step] = json.loads(capsys.readouterr().out)["steps"]
    settings = {factor["factor"]: factor["origin"]["setting"] for factor in step["factors"]}
    assert settings["params.spec.plugins.use_paged_context_fmha"] == "engine.preset"
    assert settings["params.spec.plugins.gemm_plugin"] == "engine.plugins.gemm_plugin"
    assert settings["params.spec.plugins.nccl_plugin"] == "targets.t.engine.plugins.nccl_plugin"
    assert settings["params.spec.options.strip_plan"] == "engine.build_options.strip_plan"
    assert settings["params.spec.release"] == "engine.release"


def test_a_plan_names_what_its_releases_bring(plan: Callable[..., Plan], capsys: pytest.CaptureFixture[str]) -> None:
    plan(make_recipe())
    assert main(["plan", "recipe.yaml"]) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("TensorRT-LLM 1.2.1"))
    assert line == (
        "TensorRT-LLM 1.2.1 (derived tables): TensorRT 10.14.1.48, CUDA 13.x, driver 580 or newer; "
        f"{RELEASE_IMAGE} (no digest yet: trtx lock)"
    )
    assert main(["plan", "recipe.yaml", "-o", "json"]) == 0
    [release] = json.loads(capsys.readouterr().out)["releases"]
    assert (release["tables"], release["digest"], release["min_driver"]) == ("derived", None, "580")
    write_lock(lock_path(Path("recipe.yaml")), Lock(containers={RELEASE_IMAGE: LockedContainer(digest=DIGEST)}))
    assert main(["plan", "recipe.yaml"]) == 0
    assert f"{RELEASE_IMAGE}@{DIGEST[:19]}…" in capsys.readouterr().err
