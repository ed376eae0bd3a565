"""A small build, conversion and benchmark: real cards and configs around fake programs and weights."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Protocol

import pytest

from trtx.backends.inductor.evidence import Evidence, make_tolerances
from trtx.backends.inductor.package import join_engine, make_deployment, write_deployment
from trtx.files import link_or_copy, sha256_bytes, write_bytes, write_json
from trtx.models.config import ModelConfig
from trtx.models.formats import QuantFormat
from trtx.models.weights_config import RankFile, WeightsConfig
from trtx.runtime.card import CompiledFor, EngineCard, Kernels, KvCache, Limits, Program, Rank
from trtx.runtime.scheduler import SchedulerSettings

LAYOUT = sha256_bytes(b"layout")
MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_position_embeddings=128,
    norm_epsilon=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    tie_word_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
    dtype="float32",
)
KEYS = {name: sha256_bytes(name.encode()) for name in ("engine", "weights", "benchmark")}


def make_card(*, device: str = "cpu", cpu_flags: tuple[str, ...] = (), torch: str = "2.13.0+cpu") -> EngineCard:
    """A card that this machine fits, unless a flag says otherwise."""
    machine = platform.machine()
    programs = {
        name: Program(path=f"programs/{name}.pt2", sha256=sha256_bytes(name.encode()), constants=("embed.weight",))
        for name in ("step",)
    }
    return EngineCard.model_validate(
        {
            "backend": "inductor",
            "model": MODEL,
            "quantization": QuantFormat(),
            "dtype": "float32",
            "kv_cache": KvCache(dtype="float32", tokens_per_block=16, num_layers=2, num_kv_heads=1, head_dim=8),
            "limits": Limits(max_batch_size=4, max_num_tokens=256, max_seq_len=128),
            "rank": Rank(),
            "compiled_for": CompiledFor.model_validate(
                {
                    "device": device,
                    "arch": "x86-64-v3" if machine == "x86_64" else machine,
                    "isa": "AVX2",
                    "cpu_flags": cpu_flags,
                }
            ),
            "programs": programs,
            "kernels": Kernels(path="programs/kernels.so", sha256=sha256_bytes(b"kernels"), namespace="trtx_0123"),
            "weights_layout_sha256": LAYOUT,
            "toolchain": {"torch": torch, "c++": "g++ 12.2.0"},
        }
    )


def write_engine(folder: Path, card: EngineCard) -> Path:
    write_json(folder / "engine.json", card.model_dump(mode="json", by_alias=True))
    for name in ("step",):
        write_bytes(folder / "programs" / f"{name}.pt2", name.encode())
    write_bytes(folder / "programs" / "kernels.so", b"kernels")
    write_json(folder / "check.json", make_evidence(card).model_dump(mode="json", by_alias=True))
    return folder


def make_evidence(card: EngineCard) -> Evidence:
    """What a build leaves when its programs answered right with the weights of KEYS."""
    return Evidence(
        weights_key=KEYS["weights"],
        weights_layout_sha256=card.weights_layout_sha256,
        programs={name: code.sha256 for name, code in card.code.items()},
        perplexity=20.01,
        reference_perplexity=20.0,
        figures={},
        tolerances=make_tolerances(card),
        passed=True,
    )


def write_weights(folder: Path) -> Path:
    rank = RankFile(file="rank0.safetensors", layout_sha256=LAYOUT, tensors=())
    config = WeightsConfig(
        model=MODEL, quantization=QuantFormat(), dtype="float32", tensor=1, pipeline=1, ranks=(rank,)
    )
    write_json(folder / "config.json", config.model_dump(mode="json", by_alias=True))
    write_bytes(folder / "rank0.safetensors", bytes(range(256)) * 64)
    write_bytes(folder / "tokenizer" / "tokenizer.json", b"{}")
    write_bytes(folder / "tokenizer" / "chat_template.jinja", b"{{ messages }}")
    return folder


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Output of a build step."""
    return write_engine(tmp_path / "in" / "engine", make_card())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Output of a convert step."""
    return write_weights(tmp_path / "in" / "weights")


class Deploy(Protocol):
    def __call__(
        self, folder: str = ..., benchmark: Path | None = ..., emit: tuple[str, ...] = ..., **changes: Any
    ) -> Path: ...


@pytest.fixture
def deploy(tmp_path: Path, engine: Path, weights: Path) -> Deploy:
    """Writes a deployment folder as the stage does after the check, with changed parameters."""

    def write(
        folder: str = "package", benchmark: Path | None = None, emit: tuple[str, ...] = ("compose",), **changes: Any
    ) -> Path:
        target = tmp_path / folder
        values: dict[str, Any] = {
            "name": "llama",
            "cell": "cpu/none",
            "image": None,
            "base": "docker.io/library/python:3.12-slim-bookworm",
            "port": 8000,
            "kv_cache_bytes": 2**20,
            "memory_fraction": 0.5,
            "scheduler": SchedulerSettings(),
            "keys": KEYS,
        }
        deployment = make_deployment(**(values | changes))
        link_or_copy(engine / "check.json", target / "engine" / "check.json")
        card = join_engine(engine, weights, target / "engine")
        write_deployment(target, deployment, card, make_evidence(card), emit=emit, benchmark=benchmark)
        return target

    return write


@pytest.fixture
def package(deploy: Deploy) -> Path:
    """A deployment folder."""
    return deploy()
