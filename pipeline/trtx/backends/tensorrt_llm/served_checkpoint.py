"""The Hugging Face folder that the PyTorch flow serves: whether it is the model, in the format, of the spec.

TensorRT-LLM takes the format from the folder: one that is not quantized would be served as it is, without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtx.backends.tensorrt_llm.spec import TrtllmSpec
from trtx.errors import VerificationFailed
from trtx.files import read_json
from trtx.models.formats import ALGORITHMS

CONFIG_NAME, QUANT_CONFIG_NAME = "config.json", "hf_quant_config.json"


def check_served(spec: TrtllmSpec, folder: Path) -> None:
    """Raise VerificationFailed unless the folder holds the spec's architecture in its format."""
    config = _read(folder / CONFIG_NAME)
    found = config.get("architectures") or []
    if spec.shape.architecture not in found:
        raise VerificationFailed(
            f"the checkpoint is of another model than {spec.shape.architecture}",
            why=f"{CONFIG_NAME} has architectures {found}",
            fix="give the checkpoint that the recipe's model or calibration made",
        )
    algorithm = spec.quantization.algorithm
    if algorithm == "none":
        return
    wanted = ALGORITHMS[algorithm].hf_quant_algo
    quantized = _read(folder / QUANT_CONFIG_NAME).get("quantization") if (folder / QUANT_CONFIG_NAME).is_file() else {}
    stored = (quantized or {}).get("quant_algo")
    if stored is None and config.get("quantization_config"):
        return  # Of another maker's export: its names are not ModelOpt's, and the release reads it itself.
    if stored != wanted:
        raise VerificationFailed(
            f"the checkpoint is not quantized by {algorithm}",
            why=f"{QUANT_CONFIG_NAME} has quant_algo {stored}, and {wanted} is asked for",
            fix="calibrate again, or write quantization.NAME.algorithm as the checkpoint is",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise VerificationFailed(f"{path.name} of the checkpoint cannot be read", why=str(error)) from error
    return data if isinstance(data, dict) else {}
