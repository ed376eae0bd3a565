"""config.json of a converted weights folder: what its rank files hold. Imports no torch.

config.json  rank0.safetensors … rankN.safetensors  tokenizer/
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trtx.errors import VerificationFailed
from trtx.models.config import DType, ModelConfig
from trtx.models.formats import QuantFormat

WEIGHTS_CONFIG_NAME = "config.json"
TOKENIZER_FOLDER = "tokenizer"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class StoredTensor(_Part):
    """One tensor of a rank file; `dtype` is a torch name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class RankFile(_Part):
    """One rank's tensors and the digest of their layout (models/layout.py)."""

    file: str
    layout_sha256: str
    tensors: tuple[StoredTensor, ...]


class WeightsConfig(_Part):
    """Content of config.json; written with `model_dump(mode="json", by_alias=True)`."""

    schema_: Literal["trtx.weights/v1"] = Field(default="trtx.weights/v1", alias="schema")
    model: ModelConfig
    quantization: QuantFormat
    dtype: DType
    tensor: int
    pipeline: int
    ranks: tuple[RankFile, ...]


def load_weights_config(weights: Path) -> WeightsConfig:
    """Read the config of a weights folder.

    Raises VerificationFailed when it is missing or is not one of this version.
    """
    path = weights / WEIGHTS_CONFIG_NAME
    try:
        return WeightsConfig.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise VerificationFailed(
            f"{weights} is not a weights folder",
            why=f"there is no {WEIGHTS_CONFIG_NAME}",
            fix="give the output of a convert step",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise VerificationFailed(
            f"{path} does not describe weights of this version",
            why=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            fix="convert the checkpoint again with `trtx apply`",
        ) from error
