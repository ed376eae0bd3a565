"""The engine card `engine.json`: what an engine is, what it was compiled for, what it may be joined with.

Imports no torch, so that a container's entrypoint and the control plane can read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trtx.errors import VerificationFailed
from trtx.models.config import DType, ModelConfig
from trtx.models.formats import QuantFormat

CARD_NAME = "engine.json"
Device = Literal["cpu", "cuda"]


class _Part(BaseModel):
    # A plan needs two of them only.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Limits(_Part):
    """What the programs were compiled for; requests beyond them are refused."""

    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int


class KvCache(_Part):
    """One pool per layer for keys and one for values: [num_blocks, tokens_per_block, num_kv_heads, head_dim]."""

    dtype: Literal["float32", "bfloat16", "float16", "float8_e4m3fn", "int8"]
    tokens_per_block: int
    num_layers: int
    num_kv_heads: int
    head_dim: int


class Rank(_Part):
    """Which shard of the model this is. An engine's card names its first rank: one program serves all tensor ranks."""

    tensor: int = 1
    pipeline: int = 1
    rank: int = 0


class CompiledFor(_Part):
    """The hardware the code runs on. `cpu_flags` are names of /proc/cpuinfo that must be present.

    `simulated` is true when the device has no arithmetic for the number format, so that the programs round as the
    format does and compute in a wider one: true results, and no gain in speed.
    """

    device: Device
    arch: str
    isa: str
    cpu_flags: tuple[str, ...] = ()
    simulated: bool = False


class Program(_Part):
    """One compiled package, by path relative to the card, and the weights it asks for by name."""

    path: str
    sha256: str
    constants: tuple[str, ...]


class Kernels(_Part):
    """The library of native kernels, by path relative to the card, and the namespace of its operators."""

    path: str
    sha256: str
    namespace: str


class EngineCard(_Part):
    """Content of engine.json; written with `model_dump(mode="json", by_alias=True)`.

    `products` are the algorithms that were measured to be fastest on the device, as records of its kernel library.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["trtx.engine/v1"] = Field(default="trtx.engine/v1", alias="schema")
    backend: str
    model: ModelConfig
    quantization: QuantFormat
    dtype: DType
    kv_cache: KvCache
    limits: Limits
    rank: Rank
    compiled_for: CompiledFor
    programs: dict[Literal["step"], Program]
    kernels: Kernels | None
    products: tuple[str, ...] = ()
    weights_layout_sha256: str
    toolchain: dict[str, str]

    def for_rank(self, rank: int) -> EngineCard:
        """The card as one of the engine's ranks reads it."""
        return self.model_copy(update={"rank": self.rank.model_copy(update={"rank": rank})})

    @property
    def code(self) -> dict[str, Program | Kernels]:
        """Everything of the engine that is machine code, by what it is called in messages."""
        programs: dict[str, Program | Kernels] = {f"{name} program": found for name, found in self.programs.items()}
        return programs if self.kernels is None else {**programs, "kernel library": self.kernels}


def load_card(engine: Path) -> EngineCard:
    """Read the card of an engine folder.

    Raises VerificationFailed when it is missing or is not a card of this version.
    """
    path = engine / CARD_NAME
    try:
        return EngineCard.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise VerificationFailed(
            f"{engine} is not an engine folder",
            why=f"there is no {CARD_NAME}",
            fix="give the folder that holds it",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise VerificationFailed(
            f"{path} is not an engine card of this version",
            why=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            fix="rebuild the engine with `trtx apply`",
        ) from error
