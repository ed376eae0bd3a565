"""The PyTorch flow and deployments of both, in a container whose programs are stand-ins."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.trtllm_specs import make_spec
from support.trtllm_standins import GPU_NAME, install
from support.trtllm_workshop import Workshop

from trtx.backends.tensorrt_llm.card import load_card, make_card, write_card
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.run_benchmark import Load, benchmark
from trtx.backends.tensorrt_llm.run_build import build
from trtx.backends.tensorrt_llm.run_package import Deployment, package
from trtx.backends.tensorrt_llm.serve_metrics import read_iterations, read_prometheus
from trtx.backends.tensorrt_llm.served_checkpoint import check_served
from trtx.backends.tensorrt_llm.spec import Ranks, TrtllmSpec
from trtx.bench.report import BenchmarkReport
from trtx.errors import UsageProblem, VerificationFailed

Enter = Callable[..., Workshop]
RELEASE = "1.3.0rc3"
LOADS = [Load("chat", 16, 8, 4, 6)]
SERVED = Deployment("demo", "h100/fp8", None, 8000, ("compose",), {"engine": "e" * 64, "checkpoint": "c" * 64})


def pytorch(release: str = RELEASE, **changes: Any) -> TrtllmSpec:
    return make_spec(release, flow="pytorch", converter="trtx", **changes)


def build_options(shop: Workshop, spec: TrtllmSpec) -> Path:
    step = shop.step()
    build(spec, step)
    return Path(step.output)


def make_package(shop: Workshop, spec: TrtllmSpec, deployment: Deployment = SERVED) -> Path:
    step = shop.step(engine=build_options(shop, spec), checkpoint=shop.model)
    package(spec, step, deployment)
    return Path(step.output)


def make_engine_package(shop: Workshop, spec: TrtllmSpec) -> Path:
    built = shop.step(checkpoint=shop.checkpoint(spec))
    build(spec, built)
    step = shop.step(engine=built.output)
    package(spec, step, SERVED)
    return Path(step.output)


@pytest.fixture
def shop(open_workshop: Enter) -> Workshop:
    return open_workshop(RELEASE)


def test_an_options_file_needs_no_container_and_no_gpu(tmp_path: Path, tiny_model: Path) -> None:
    options = build_options(Workshop(tmp_path, None, tiny_model), pytorch(ranks=Ranks(tensor=2)))
    values = yaml.safe_load((options / "llm_options.yaml").read_text())
    assert values["tensor_parallel_size"] == 2
    assert values["kv_cache_config"]["free_gpu_memory_fraction"] == 0.9
    assert values["scheduler_config"] == {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT"}
    card = load_card(options)
    assert (card.flow, card.tensorrt, card.gpu, card.doubts) == ("pytorch", None, None, ())


def test_a_key_that_the_release_lacks_is_refused_with_the_nearest_one(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UsageProblem) as refused:
        build_options(Workshop(tmp_path, None, tiny_model), pytorch(options={"stream_intervall": 2}))
    assert "did you mean 'stream_interval'?" in refused.value.what


def test_what_is_not_established_for_a_release_is_said_in_its_card(tmp_path: Path, tiny_model: Path) -> None:
    shop = Workshop(tmp_path, None, tiny_model)
    card = load_card(build_options(shop, pytorch("1.1.0")))
    assert len(card.doubts) == 1
    assert "kv_cache_config.tokens_per_block" in card.doubts[0]
    assert any(line.startswith("doubt: ") for line in shop.log)


def test_a_benchmark_reads_the_report_and_says_nothing_twice(shop: Workshop) -> None:
    spec = pytorch(ranks=Ranks(tensor=2))
    step = shop.step(engine=build_options(shop, spec), checkpoint=shop.model)
    benchmark(spec, step, loads=LOADS, repeats=2, warmup_requests=1, seed=3)
    report = BenchmarkReport.model_validate_json((step.output / "benchmark.json").read_bytes())
    (row,) = report.results
    assert row.time_to_first_token_s is not None
    assert row.time_to_first_token_s.p50.repeats == (0.043, 0.043)
    assert row.inter_token_latency_s is not None
    assert report.machine.gpus == (GPU_NAME,)
    assert report.notes == (f"measured by trtllm-bench of TensorRT-LLM {RELEASE}",)
    raw = json.loads((step.output / "raw/chat-4-0.json").read_text())
    assert not {"max_batch_size", "tensor_parallel_size", "enable_chunked_prefill"} & raw["options"].keys()
    assert raw["options"]["kv_cache_config"] == {"dtype": "auto", "enable_block_reuse": True, "tokens_per_block": 32}


def test_doubts_are_settled_by_the_tools_own_help(open_workshop: Enter) -> None:
    """Of 1.0.0 it is not established whether trtllm-bench has --concurrency and --report_json."""
    shop = open_workshop("1.0.0")
    shop.standins.behave(without="--report_json --concurrency")  # type: ignore[union-attr]
    spec = pytorch("1.0.0")
    step = shop.step(engine=build_options(shop, spec), checkpoint=shop.model)
    summary = benchmark(spec, step, loads=LOADS, repeats=1, warmup_requests=1, seed=3)
    assert summary["doubts"] == []
    assert any("has no --report_json: it is left out" in line for line in shop.log)
    report = BenchmarkReport.model_validate_json((step.output / "benchmark.json").read_bytes())
    assert any("no --concurrency" in note for note in report.notes)
    assert report.results[0].time_to_first_token_s is not None  # From the printed tables.
    assert [path.suffix for path in (step.output / "raw").iterdir()] == [".log"]


@contextmanager
def serving(folder: Path, **variables: str) -> Iterator[int]:
    """A deployment's entrypoint with its server, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, str(folder / "entrypoint.py"), "--port", str(port), "--host", "127.0.0.1"]
    server = subprocess.Popen(words, env={**os.environ, **variables}, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not answers(port, "/health") and server.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield port
    finally:
        server.kill()
        server.wait()


def answers(port: int, route: str) -> str | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{route}", timeout=5) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError):
        return None


def check(folder: Path, **variables: str) -> tuple[int, str]:
    """Exit code and complaint of an entrypoint that only looks."""
    words = [sys.executable, str(folder / "entrypoint.py"), "--check"]
    done = subprocess.run(words, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_deployment_serves_and_its_metrics_are_read(shop: Workshop) -> None:
    folder = make_package(shop, pytorch())
    with serving(folder) as port:
        (iteration,) = read_iterations(answers(port, "/metrics") or "")
        metrics = read_prometheus(answers(port, "/prometheus/metrics") or "")
    assert (iteration.number, iteration.active, iteration.kv_blocks_used) == (7, 3, 25)
    assert metrics.succeeded == 6
    latency = metrics.latencies["time_to_first_token_seconds"]
    assert (latency.count, latency.at_most(50), latency.at_most(99)) == (6, 0.1, 0.5)
    assert latency.mean_s == pytest.approx(0.15)


def test_a_deployment_is_pinned_and_says_what_it_holds(shop: Workshop) -> None:
    folder = make_package(shop, pytorch())
    settings = json.loads((folder / "deployment.json").read_text())
    base = f"nvcr.io/nvidia/tensorrt-llm/release:{RELEASE}@sha256:{'a' * 64}"
    assert settings["base"] == base
    assert settings["serve"][:4] == ["trtllm-serve", "{folder}/checkpoint", "--tokenizer", "{folder}/checkpoint"]
    assert "--max_batch_size" not in settings["serve"]
    dockerfile = (folder / "Dockerfile").read_text()
    assert f"FROM {base}\n" in dockerfile
    assert "COPY checkpoint/ checkpoint/\nCOPY engine/ engine/\n" in dockerfile
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    devices = compose["services"]["server"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


def test_hosts_have_as_many_gpus_as_the_recipe_says(shop: Workshop) -> None:
    folder = make_package(shop, pytorch(ranks=Ranks(tensor=4)), replace(SERVED, gpus_per_node=2))
    launch = json.loads((folder / "deployment.json").read_text())["launch"]
    assert (launch["hosts"], launch["gpus_per_host"]) == (2, 2)
    assert "--nodes=2" in (folder / "README.md").read_text()


def test_ranks_over_several_hosts_are_started_by_srun(shop: Workshop) -> None:
    folder = make_package(shop, pytorch(ranks=Ranks(tensor=8, pipeline=2)))
    line = "srun --mpi=pmix --nodes=2 --ntasks=16 --ntasks-per-node=8 --gpus-per-node=8 trtllm-llmapi-launch python3 "
    assert line in (folder / "README.md").read_text()
    launch = json.loads((folder / "deployment.json").read_text())["launch"]
    assert (launch["hosts"], launch["gpus_per_host"]) == (2, 8)
    assert "count: 8" in (folder / "compose.yaml").read_text()


def test_a_checkpoint_that_is_not_in_the_format_is_not_served_as_it_is(shop: Workshop) -> None:
    spec = pytorch(algorithm="fp8")
    with pytest.raises(VerificationFailed, match="not quantized by fp8"):
        make_package(shop, spec)
    step = shop.step(engine=build_options(shop, spec), checkpoint=shop.model)
    with pytest.raises(VerificationFailed, match="not quantized by fp8"):
        benchmark(spec, step, loads=LOADS, repeats=1, warmup_requests=1, seed=3)


@pytest.mark.parametrize(
    ("quant_config", "config", "algorithm", "complaint"),
    [
        ({"quantization": {"quant_algo": "FP8"}}, {}, "fp8", None),
        ({"quantization": {"quant_algo": "NVFP4"}}, {}, "fp8", "has quant_algo NVFP4, and FP8 is asked for"),
        (None, {"quantization_config": {"quant_method": "fp8"}}, "fp8", None),
        (None, {}, "none", None),
        (None, {"architectures": ["Qwen2ForCausalLM"]}, "none", "architectures ['Qwen2ForCausalLM']"),
    ],
)
def test_what_is_served_is_what_the_recipe_says(
    tmp_path: Path, quant_config: Any, config: dict[str, Any], algorithm: str, complaint: str | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    if quant_config is not None:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(quant_config))
    if complaint is None:
        check_served(pytorch(algorithm=algorithm), tmp_path)
        return
    with pytest.raises(VerificationFailed) as refused:
        check_served(pytorch(algorithm=algorithm), tmp_path)
    assert complaint in refused.value.why


def test_an_image_that_is_not_pinned_is_refused(shop: Workshop) -> None:
    spec = pytorch()
    moving = spec.model_copy(
        update={"container": spec.container.model_copy(update={"image": "x/y:latest", "digest": None})}
    )
    with pytest.raises(UsageProblem, match="is not pinned"):
        make_package(shop, moving)


def test_an_engine_gets_an_options_file_of_what_it_does_not_hold(shop: Workshop) -> None:
    folder = make_engine_package(shop, make_spec(RELEASE))
    values = yaml.safe_load((folder / "engine/llm_options.yaml").read_text())
    assert set(values) == {"enable_chunked_prefill", "kv_cache_config", "scheduler_config"}
    settings = json.loads((folder / "deployment.json").read_text())
    assert (settings["tensorrt"], settings["compute_capability"]) == ("10.14.1.48+standin", "9.0")
    assert check(folder) == (0, "")


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"library": "1.2.1"}, "was built for TensorRT-LLM 1.3.0rc3, and this container has 1.2.1+standin"),
        ({"tensorrt": "10.13.3.9"}, "built with TensorRT 10.14.1.48+standin, and this container has 10.13.3.9+standin"),
        ({"sm": 80}, "built for compute capability 9.0"),
        ({"gpus": 1}, "it needs 2 GPU(s) and 1 are visible"),
    ],
)
def test_a_container_that_the_engine_does_not_fit_is_refused(
    open_workshop: Enter, tmp_path: Path, other: dict[str, Any], complaint: str
) -> None:
    shop = open_workshop(RELEASE)
    folder = make_engine_package(shop, make_spec(RELEASE, ranks=Ranks(tensor=2)))
    there = install(tmp_path / "other", RELEASE, **other)
    code, error = check(folder, **{name: there.environ[name] for name in ("PATH", "PYTHONPATH")})
    assert code == 6
    assert complaint in error


def test_the_model_of_gpu_counts_where_that_is_asked_for(shop: Workshop) -> None:
    folder = make_engine_package(shop, make_spec(RELEASE))
    settings = json.loads((folder / "deployment.json").read_text())
    (folder / "deployment.json").write_text(json.dumps({**settings, "gpu": "another one"}))
    assert check(folder)[0] == 0
    code, error = check(folder, TRTX_STRICT_GPU="1")
    assert (code, "the engine was built on another one" in error) == (6, True)


def test_a_changed_file_is_found_before_the_server_starts(shop: Workshop) -> None:
    folder = make_engine_package(shop, make_spec(RELEASE))
    (folder / "engine/rank0.engine").unlink()
    code, error = check(folder)
    assert (code, error.startswith("error: cannot read engine/rank0.engine: No such file")) == (8, True)
    assert check(folder, TRTX_VERIFY="code")[0] == 0
    config = folder / "engine/config.json"
    config.unlink()
    config.write_text("{}")
    assert check(folder, TRTX_VERIFY="code") == (
        8,
        "error: engine/config.json is not the file that was packaged; copy the folder again\n",
    )


def test_a_triton_repository_is_packaged_with_the_image_that_has_the_release(shop: Workshop) -> None:
    deployment = replace(SERVED, emit=("compose", "triton"))
    folder = make_package(shop, pytorch("1.2.1"), deployment)
    arguments = yaml.safe_load((folder / "triton/models/tensorrt_llm/1/model.yaml").read_text())
    assert (arguments["model"], arguments["max_batch_size"]) == ("/opt/trtx/checkpoint", 4)
    base = Release.load("1.2.1").triton_image
    assert f"FROM {base}\n" in (folder / "triton/Dockerfile").read_text()
    assert str(base) in (folder / "README.md").read_text()
    words = json.loads((folder / "deployment.json").read_text())["triton"]
    assert words[:2] == ["tritonserver", "--model-repository={folder}/triton/models"]


def test_what_triton_and_the_entrypoint_read_is_verified_too(shop: Workshop) -> None:
    folder = make_package(shop, pytorch("1.2.1"), replace(SERVED, emit=("compose", "triton")))
    shutil.rmtree(folder / "triton/models/tensorrt_llm")
    assert check(folder)[0] == 8
    shutil.rmtree(folder / "triton")  # as in the image of trtllm-serve
    assert check(folder)[0] != 8
    (folder / "SHA256SUMS").unlink()
    assert check(folder) == (8, "error: cannot read SHA256SUMS: No such file or directory; copy the folder again\n")
    (folder / "deployment.json").unlink()
    (folder / "deployment.json").write_text("{")
    code, complaint = check(folder)
    assert (code, complaint.startswith("error: deployment.json is damaged")) == (8, True)


def test_a_server_that_is_not_packaged_is_no_server(shop: Workshop) -> None:
    folder = make_package(shop, pytorch())
    done = subprocess.run(
        [sys.executable, str(folder / "entrypoint.py"), "--triton"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "no Triton repository is packaged" in done.stderr) == (2, True)


def test_releases_without_a_server_are_packaged_for_triton_only(tmp_path: Path, tiny_model: Path) -> None:
    shop = Workshop(tmp_path, None, tiny_model)
    spec = make_spec("0.14.0")
    engine = shop.step()
    write_card(engine.output, make_card(spec, None))
    with pytest.raises(UsageProblem, match=r"0\.14\.0 has no trtllm-serve"):
        package(spec, shop.step(engine=engine.output), SERVED)
