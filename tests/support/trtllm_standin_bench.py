"""The stand-in for trtllm-bench. Its figures are made up of the command line, and its GPU is called a stand-in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from support.trtllm_standin_build import local_sm
from support.trtllm_standins import GPU_NAME, Wrong

from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.schema_check import check_schema

NAMES = ("minimum", "maximum", "average", "p50", "p90", "p95", "p99")


def run_bench(release: Release, values: Mapping[str, Any]) -> None:
    rows = [json.loads(line) for line in Path(values["dataset"]).read_text().splitlines()]
    if not all({"task_id", "output_tokens"} <= row.keys() and ("logits" in row or "prompt" in row) for row in rows):
        raise Wrong("KeyError: a row of the dataset has no task_id, output_tokens, or prompt")
    if not (Path(values["model"]) / "tokenizer_config.json").is_file():
        raise Wrong(f"OSError: Can't load tokenizer for '{values['model']}'")
    version = open_model(release, values)
    options = read_options(release, values)
    in_flight = values.get("concurrency", -1)
    in_flight = in_flight if in_flight and in_flight > 0 else values["max_batch_size"]
    report = make_report(version, rows, in_flight, values, options)
    if values.get("report_json"):
        Path(values["report_json"]).write_text(json.dumps(report))
    print_report(release, report)


def open_model(release: Release, values: Mapping[str, Any]) -> str:
    """The engine's version, or the release's own; in the words of TensorRT where an engine does not load."""
    if values.get("backend") == "pytorch":
        if not (Path(values["model"]) / "config.json").is_file():
            raise Wrong(f"OSError: {values['model']} does not appear to have a file named config.json")
        return release.version
    folder = Path(values["engine_dir"])
    version = str(json.loads((folder / "config.json").read_text())["version"])
    for file in sorted(folder.glob("rank*.engine")):
        engine = json.loads(file.read_text())
        if engine["release"] != release.version:
            raise Wrong(
                "[TRT] [E] IRuntime::deserializeCudaEngine: Error Code 1: Serialization "
                "(Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match.)"
            )
        if engine["sm"] != local_sm():
            raise Wrong("[TRT] [E] The engine plan file is generated on an incompatible device")
    return version


def read_options(release: Release, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options file, refused where the release's class would refuse it or the command line says the same."""
    if not values.get("extra_llm_api_options"):
        return {}
    options: dict[str, Any] = yaml.safe_load(Path(values["extra_llm_api_options"]).read_text()) or {}
    schema = "TorchLlmArgs" if values.get("backend") == "pytorch" else "TrtLlmArgs"
    wrong = [str(found) for found in check_schema(release, schema, {"model": "", **options}) if not found.doubt]
    twice = sorted(options.keys() & {"max_batch_size", "max_num_tokens", "tensor_parallel_size"})
    if wrong or twice:
        raise Wrong(f"pydantic_core.ValidationError: {'; '.join(wrong + twice)}")
    return options


def make_report(
    version: str, rows: list[dict[str, Any]], in_flight: int, values: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of tensorrt_llm/bench/dataclasses/reporting.py of 1.3.0rc3."""
    tokens = sum(row["output_tokens"] for row in rows)
    rate = 1000.0 * in_flight
    seconds = tokens / rate
    spread = {name: 10.0 * in_flight + index for index, name in enumerate(NAMES)}
    report: dict[str, Any] = {
        "engine": {"model": str(values["model"]), "version": version, "stand_in": True},
        "machine": {"name": GPU_NAME, "memory.total": "0", "clocks.mem": "0"},
        "world_info": {"tp_size": values.get("tp", 1), "max_batch_size": values["max_batch_size"]},
        "request_info": {
            "num_requests": len(rows),
            "avg_input_length": sum(len(row.get("logits", ())) for row in rows) / len(rows),
            "avg_output_length": tokens / len(rows),
        },
        "performance": {
            "total_latency_ms": seconds * 1e3,
            "request_throughput_req_s": len(rows) / seconds,
            "system_output_throughput_tok_s": rate,
            "request_latency_percentiles_ms": spread,
        },
        "options": dict(options),
    }
    if values.get("streaming"):
        report["streaming_metrics"] = {
            "avg_ttft_ms": spread["average"],
            "ttft_percentiles": spread,
            "tpot_percentiles": {name: value / 10 for name, value in spread.items()},
        }
    return report


def print_report(release: Release, report: Mapping[str, Any]) -> None:
    """The tables that each generation prints, as in NVIDIA's documents on trtllm-bench."""
    info, performance = report["request_info"], report["performance"]
    order = [int(part) for part in release.version.split(".")[:2] if part.isdigit()]
    print(f"TensorRT-LLM Version:\t{release.version}")
    if order < [0, 15]:
        print("= STATISTICS")
        print(f"Number of requests:\t\t{info['num_requests']}")
        print(f"Average Input Length (tokens):\t{info['avg_input_length']}")
        print(f"Token Throughput (tokens/sec):\t{performance['system_output_throughput_tok_s']}")
        print(f"Request Throughput (req/sec):\t{performance['request_throughput_req_s']}")
        print(f"Total Latency (seconds):\t{performance['total_latency_ms'] / 1e3}")
        return
    print("= PERFORMANCE OVERVIEW")
    if order < [0, 17]:
        print(f"Number of requests:\t\t{info['num_requests']}")
        print(f"Token Throughput (tokens/sec):\t{performance['system_output_throughput_tok_s']:.4f}")
        print(f"Request Throughput (req/sec):\t{performance['request_throughput_req_s']:.4f}")
        print(f"Total Latency (ms):\t\t{performance['total_latency_ms']:.4f}")
        return
    print(f"Request Throughput (req/sec):                     {performance['request_throughput_req_s']:.4f}")
    print(f"Total Output Throughput (tokens/sec):             {performance['system_output_throughput_tok_s']:.4f}")
    print(f"Total Latency (ms):                               {performance['total_latency_ms']:.4f}")
    for label, key in (("TPOT", "tpot_percentiles"), ("TTFT", "ttft_percentiles")):
        for name, value in report.get("streaming_metrics", {}).get(key, {}).items():
            print(f"[{label}] {name.upper():<7}: {value:.4f}")
