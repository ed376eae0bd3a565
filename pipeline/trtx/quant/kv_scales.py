"""Scales of an int8 KV cache: ModelOpt observes the keys and values and has no export for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from trtx.files import read_json, write_json
from trtx.models.checkpoint import INDEX, SINGLE
from trtx.models.sources.transfer import saving
from trtx.quant.checkpoint_folder import FORMAT_NAME, write_plain_format

INT8_MAX = 127
KV_FILE = "model-kv-scales.safetensors"


def take_int8_scales(model: Any) -> dict[str, Tensor]:
    """The scale of every key and value cache, by its name in the checkpoint; ModelOpt's quantizers are turned off.

    A scale is the largest magnitude that ModelOpt observed / 127.
    """
    scales: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        for which in "kv":
            quantizer = getattr(module, f"{which}_bmm_quantizer", None)
            if quantizer is not None and quantizer.is_enabled:
                scales[f"{name}.{which}_proj.{which}_scale"] = quantizer.amax.float().reshape(()).cpu() / INT8_MAX
                quantizer.reset_amax()
                quantizer.disable()
    return scales


def add_scales(folder: Path, scales: dict[str, Tensor]) -> None:
    """Put scales into an exported checkpoint, and say so in its config files as ModelOpt says it of fp8."""
    with saving(folder):
        if (folder / INDEX).is_file():
            save_file(scales, folder / KV_FILE, metadata={"format": "pt"})
            index = read_json(folder / INDEX)
            index["weight_map"] |= dict.fromkeys(scales, KV_FILE)
            write_json(folder / INDEX, index)
        else:
            save_file(load_file(folder / SINGLE) | scales, folder / SINGLE, metadata={"format": "pt"})
    if not (folder / FORMAT_NAME).is_file():
        write_plain_format(folder)  # the cache is all that is quantized
    facts = read_json(folder / FORMAT_NAME)
    facts["quantization"]["kv_cache_quant_algo"] = "INT8"
    write_json(folder / FORMAT_NAME, facts)
    config = read_json(folder / "config.json")
    if "quantization_config" in config:
        config["quantization_config"]["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "int"}
        write_json(folder / "config.json", config)
