"""Specs of TensorRT-LLM for tests, engine folders as trtllm-build leaves them, and a parser of config.pbtxt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from trtx.backends.tensorrt_llm.spec import Batching, Container, Device, Pool, Ranks, Shape, Sizes, TrtllmSpec
from trtx.models.formats import QuantFormat

SHAPE = Shape(
    architecture="LlamaForCausalLM",
    vocab_size=258,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=2048,
)


def make_spec(release: str, flow: str = "engine", **changes: Any) -> TrtllmSpec:
    """A Llama on one H100, whose tokenizer has a token for every byte."""
    values: dict[str, Any] = {
        "release": release,
        "flow": flow,
        "container": Container(image="nvcr.io/nvidia/tensorrt-llm/release:test"),
        "shape": SHAPE,
        "quantization": QuantFormat(),
        "dtype": "bfloat16",
        "ranks": Ranks(),
        "device": Device(name="h100-sxm-80gb", sm=90, memory_bytes=80 * 2**30),
        "sizes": Sizes(max_batch_size=8, max_num_tokens=512, max_seq_len=256),
        "pool": Pool(tokens_per_block=32, memory_fraction=0.85, reuse=True),
        "batching": Batching(policy="max-utilization", chunked_context=True),
    }
    return TrtllmSpec(**(values | changes))


def write_engine_folder(folder: Path, version: str, ranks: int = 1) -> Path:
    """What trtllm-build leaves, as far as anything but TensorRT reads it: a stand-in for an engine."""
    folder.mkdir(parents=True)
    config = {
        "version": version,
        "pretrained_config": {"architecture": "LlamaForCausalLM", "mapping": {"world_size": ranks}},
        "build_config": {"max_batch_size": 8},
    }
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(ranks):
        (folder / f"rank{rank}.engine").write_bytes(b"stand-in")
    return folder


def write_distribution(site: Path, name: str, version: str) -> Path:
    """The metadata of an installed distribution, so that a version can be asked for; there is no code."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return site


def parse_config(folder: Path) -> Any:
    """A model's config.pbtxt as Triton's own message. Raises ParseError for what the server could not read."""
    text = (folder / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())  # type: ignore[attr-defined]


def parameters_of(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}
