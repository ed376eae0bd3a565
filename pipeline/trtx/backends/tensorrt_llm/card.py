"""trtllm.json: what an engine folder, or an options file, was made by and for. The runtime's own files do not say.

TensorRT refuses a plan of another version or another compute capability when it is loaded; TensorRT-LLM only logs that
an engine's version is not its own (cpp/tensorrt_llm/runtime/gptJsonConfig.cpp:452-461 of 1.3.0rc3). Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trtx.backends.tensorrt_llm.machine import Installed
from trtx.backends.tensorrt_llm.names import CARD_NAME
from trtx.backends.tensorrt_llm.releases import Flow
from trtx.backends.tensorrt_llm.spec import Container, TrtllmSpec
from trtx.errors import VerificationFailed
from trtx.files import canonical_json, sha256_bytes, write_json

# A plan depends on these components of TensorRT's version; the fourth counts builds of one release.
TENSORRT_COMPONENTS = 3


class DriftRow(BaseModel):
    """One setting that the builder changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str
    asked: Any
    got: Any
    reason: str


class TrtllmCard(BaseModel):
    """Content of trtllm.json. `tensorrt`, `gpu` and `compute_capability` are as found where the engine was built.

    In the PyTorch flow nothing is compiled, and the three are null. `spec_sha256` is the digest of the spec.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["trtx.trtllm/v1"] = Field(default="trtx.trtllm/v1", alias="schema")
    flow: Flow
    tensorrt_llm: str
    tensorrt: str | None
    compute_capability: str | None
    gpu: str | None
    world_size: int
    container: Container
    spec_sha256: str
    spec: TrtllmSpec
    drift: tuple[DriftRow, ...] = ()
    doubts: tuple[str, ...] = ()


def make_card(
    spec: TrtllmSpec, installed: Installed | None, drift: tuple[dict[str, Any], ...] = (), doubts: tuple[str, ...] = ()
) -> TrtllmCard:
    """The card of an engine that was built here, or of an options file, which depends on nothing that is here."""
    built = installed if spec.flow == "engine" else None
    sm = built.sm if built else None
    return TrtllmCard(
        flow=spec.flow,
        tensorrt_llm=spec.release,
        tensorrt=built.tensorrt if built else None,
        compute_capability=f"{sm // 10}.{sm % 10}" if sm else None,
        gpu=built.gpus[0].name if built and built.gpus else None,
        world_size=spec.ranks.world_size,
        container=spec.container,
        spec_sha256=digest_spec(spec),
        spec=spec,
        drift=tuple(DriftRow(**row) for row in drift),
        doubts=doubts,
    )


def digest_spec(spec: TrtllmSpec) -> str:
    """SHA-256 of the spec's canonical JSON."""
    return sha256_bytes(canonical_json(spec.model_dump(mode="json")))


def write_card(folder: Path, card: TrtllmCard) -> None:
    write_json(folder / CARD_NAME, card.model_dump(mode="json", by_alias=True))


def load_card(folder: Path) -> TrtllmCard:
    """Read the card of an engine folder. Raises VerificationFailed when there is none of this version."""
    try:
        return TrtllmCard.model_validate_json((folder / CARD_NAME).read_bytes())
    except OSError as error:
        raise VerificationFailed(
            f"{folder} was not made by trtx for TensorRT-LLM",
            why=f"{CARD_NAME}: {error.strerror}",
            fix="give the folder that the build step made",
        ) from error
    except ValidationError as error:
        raise VerificationFailed(
            f"{CARD_NAME} in {folder} is not of this version of trtx", why=str(error.errors()[0]["msg"])
        ) from error


def same_tensorrt(first: str, second: str) -> bool:
    """Whether plans of one version of TensorRT load in the other."""
    return first.split(".")[:TENSORRT_COMPONENTS] == second.partition("+")[0].split(".")[:TENSORRT_COMPONENTS]
