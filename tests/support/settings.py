"""A recipe in which every setting of the language has a value, and how to change each of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from trtx.recipe.lookup import alternatives, fields_of, find_spot, value_at
from trtx.recipe.parts import Part
from trtx.recipe.problems import Path
from trtx.recipe.schema import Recipe

ENGINE: dict[str, Any] = {
    "backend": "inductor",
    "dtype": "auto",
    "limits": {
        "max_batch_size": 4,
        "max_num_tokens": 256,
        "max_seq_len": 256,
        "max_input_len": 128,
        "max_beam_width": 1,
    },
    "kv_cache": {
        "tokens_per_block": 16,
        "memory_fraction": 0.5,
        "size": "1GiB",
        "reuse": False,
        "host_size": "1GiB",
    },
    "scheduler": {"policy": "guaranteed-no-evict", "chunked_prefill": False},
    "release": "1.3.0rc3",
    "flow": "auto",
    "probe": "one.json",
    "container": "registry.example.com/trtllm:1",
    "converter": "release",
    # Its flags depend on nothing else of the recipe.
    "preset": "long-context",
    "profiles": False,
    "plugins": {"gemm_plugin": "auto"},
    "build_options": {"strip_plan": True},
    "llm_options": {"stream_interval": 2},
    "speculative": {"mode": "lookahead", "max_draft_len": 2, "draft": "hf://owner/draft"},
    "lora": {"max_rank": 8, "target_modules": ["attn_q"], "max_adapters": 2},
    "strict_gpu": True,
}
TENSORRT = {"backend": "tensorrt-llm"}
CALIBRATION: dict[str, Any] = {
    "dataset": "demo://docs",
    "revision": "main",
    "split": "train",
    "column": "text",
    "samples": 16,
    "heldout": 8,
    "max_length": 64,
    "batch_size": 4,
    "seed": 1,
}
NEEDS: dict[str, Any] = {"partition": "b", "time": "1h", "memory": "1GiB", "cpus": 2}
JOBS = ("calibrate", "convert", "build", "benchmark", "package")
LOAD: dict[str, Any] = {"input_tokens": 8, "output_tokens": 8, "concurrency": [1, 16]}
# `fast` states its whole engine, `cpu` takes the recipe's; `hopper` and `served` are the same of TensorRT-LLM's
# two flows; `chat` states its requests, `burst` does not.
FULL: dict[str, Any] = {
    "schema": "trtx/v1",
    "name": "full",
    "description": "Every setting has a value.",
    "model": {"source": "hf://owner/name", "revision": "main", "allow_pickle": False},
    "quantization": {
        name: {
            "algorithm": algorithm,
            "kv_cache": "auto",
            "exclude": ["lm_head"],
            "calibration": {**CALIBRATION, "dataset": f"hf://owner/{name}"},
        }
        for name, algorithm in (("plain", "none"), ("small", "fp8"))
    },
    "engine": ENGINE,
    "targets": {
        name: {
            "gpu": gpu,
            "parallelism": {"tensor": 1, "pipeline": 1, "context": 1, "expert": 1, "gpus_per_node": 8},
            "quantization": ["small"] if name in ("own-hopper", "own-served") else ["plain", "small"],
            "engine": engine,
            "runner": runner,
            "job": {"partition": "b", "time": "1h", "memory": "1GiB", "cpus": 2, "gpus": "h100:1"},
        }
        for name, engine, runner, gpu in (
            ("cpu", {}, "there", "cpu"),
            ("fast", ENGINE, "pretended", "cpu"),
            ("hopper", {"backend": "tensorrt-llm", "flow": "engine"}, "there", "h100"),
            ("served", {"backend": "tensorrt-llm"}, "there", "h100"),
            ("own-hopper", {**ENGINE, **TENSORRT, "flow": "engine", "converter": "trtx"}, "there", "h100"),
            ("own-scripts", {**ENGINE, **TENSORRT, "flow": "engine"}, "there", "h100"),
            ("own-served", {**ENGINE, **TENSORRT}, "there", "h100"),
        )
    },
    "benchmark": {
        "workloads": {"chat": {**LOAD, "requests": 16}, "burst": LOAD},
        "repeats": 2,
        "warmup_requests": 1,
        "seed": 1,
    },
    "gates": {
        "slo": [{"workload": "chat", "concurrency": 1, "metric": "ttft_p99", "max": "400ms", "min": 5.0}],
        "accuracy": {"baseline": "plain", "metric": "perplexity", "max_rise": "2%"},
        "regression": {"baseline": "last", "max_slowdown": "2%"},
    },
    "package": {
        "image": "registry.example.com/full",
        "base": "docker.io/library/python:3.12",
        "emit": ["triton", "compose"],
        "triton_base": "nvcr.io/nvidia/tritonserver:25.08-py3",
    },
    "serving": {"api": "openai", "port": 8000},
    "runners": {
        "here": {"type": "local"},
        "there": {
            "type": "slurm",
            **NEEDS,
            "account": "a",
            "qos": "c",
            "constraint": "avx512",
            "reservation": "d",
            "licenses": ["e:2"],
            "nice": 1,
            "exclusive": False,
            "stages": {stage: {**NEEDS, "exclusive": True} for stage in JOBS},
            "gpus": {"h100-sxm-80gb": "hopper"},
            "gpu_dialect": "auto",
            "requeue": True,
            "warn": "1min",
            "python": "/opt/python",
            "environment": {"A": "1"},
            "modules": ["cuda"],
            "setup": ["ulimit -n"],
            "container": {"runtime": "pyxis", "image": f"a/b@sha256:{'0' * 64}", "mounts": ["/a:/b"]},
            "sbatch": {"mail-user": "me"},
            "throttle": 4,
            "submit_from": "ssh://login",
        },
        "pretended": {
            "type": "sim",
            **NEEDS,
            "nodes": {"one": {"gpu": "h100", "gpus": 8, "slots": 4}},
            "faults": {"seed": 1, "rate": 0.5},
            "throttle": 4,
        },
    },
}

FULL = json.loads(json.dumps(FULL))  # Nothing in it is shared, so that each place can be changed alone.

# Settings that name something, and other things that there are.
REFERENCES: dict[str, tuple[Any, ...]] = {
    "targets.*.gpu": ("cpu-avx512", "l40s-48gb"),
    "engine.release": ("1.2.1",),
    "targets.*.engine.release": ("1.2.1",),
    "targets.*.quantization": (["small"], ["small", "plain"]),
    "targets.*.runner": ("local", "here", "pretended"),
}
# Values to try where the type alone does not tell another one; the first that the language accepts is taken.
TEXTS: tuple[Any, ...] = (
    "other",
    "file:///other",
    "2h",
    "3%",
    "2GiB",
    "registry.example.com/other",
    "docker.io/library/python:3.11",
    "slurm",
    "/c:/d:ro",
    "a100:2",
    f"a/c@sha256:{'1' * 64}",
    "ssh://other",
    {"b200": "blackwell"},
    {"OTHER": "2"},
    {"mail-type": "END"},
)


def leaves(annotation: Any = Recipe, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every setting of the language, with `*` for free names and list indexes; alternatives may repeat one."""
    inner = False
    for option in alternatives(annotation):
        origin, arguments = get_origin(option), get_args(option)
        if isinstance(option, type) and issubclass(option, Part):
            inner = True
            for name, field in fields_of(option).items():
                yield from leaves(field.annotation, (*path, name))
        elif origin in (dict, tuple) and _holds_model(arguments[1 if origin is dict else 0]):
            inner = True
            yield from leaves(arguments[1 if origin is dict else 0], (*path, "*"))
    if not inner:
        yield ".".join(path)


def _holds_model(annotation: Any) -> bool:
    return any(isinstance(option, type) and issubclass(option, BaseModel) for option in alternatives(annotation))


def places(setting: str, data: Any = FULL) -> list[Path]:
    """Every place of a recipe that a setting stands at."""
    found: list[Path] = [()]
    for part in setting.split("."):
        found = [(*path, name) for path in found for name in _names(value_at(path, data), part)]
    return found


def _names(value: Any, part: str) -> list[str | int]:
    if part == "*" and isinstance(value, list):
        return list(range(len(value)))
    if isinstance(value, dict):
        return list(value) if part == "*" else [part] if part in value else []
    return []


def flips(path: Path, data: dict[str, Any] = FULL) -> list[Recipe]:
    """The recipe with one setting changed, once for every other value there is to try that the language accepts."""
    old = value_at(path, data)
    spot = find_spot(path, data)
    assert spot is not None, path
    recipes = []
    is_target = path[0] == "targets"
    setting = ".".join("*" if index == 1 and is_target else str(part) for index, part in enumerate(path))
    for value in REFERENCES.get(setting, _candidates(old, spot.annotation)):
        changed = copy.deepcopy(data)
        holder = value_at(path[:-1], changed)
        holder[path[-1]] = value
        if path[-1] == "type":  # It says which other settings there are.
            holder.clear()
            holder["type"] = value
        try:
            recipes.append(Recipe.model_validate(changed))
        except ValidationError:
            continue
    return recipes


def _candidates(old: Any, annotation: Any) -> Iterable[Any]:
    if isinstance(old, bool):
        yield not old
    elif isinstance(old, int | float):
        yield from (old * 2, old + 1) if isinstance(old, int) else (old / 2,)
    elif isinstance(old, list):
        yield old * 2
        yield from ([other] for other in _candidates(old[0], annotation))
    else:
        yield from (value for value in (*_choices(annotation), *TEXTS) if value != old)


def _choices(annotation: Any) -> Iterator[Any]:
    """The values of a Literal, wherever in an annotation it stands."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) in (Annotated, Union, UnionType, tuple):
        for option in get_args(annotation):
            yield from _choices(option)
