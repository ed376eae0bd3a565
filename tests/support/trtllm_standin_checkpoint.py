"""Stand-ins for quantize.py and convert_checkpoint.py: TensorRT-LLM's checkpoint from a Hugging Face model.

They lay out tensors as the real ones do (names, shapes, ranks); numbers of quantized formats are zeros, for nothing is
quantized here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from support.trtllm_standins import Wrong

QFORMATS = {
    "full_prec": None,
    "fp8": "FP8",
    "fp8_pc_pt": "FP8_PER_CHANNEL_PER_TOKEN",
    "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "int8_wo": "W8A16",
    "int4_wo": "W4A16",
    "int4_awq": "W4A16_AWQ",
    "w4a8_awq": "W4A8_AWQ",
    "nvfp4": "NVFP4",
}
KV_ALGOS = {"fp8": "FP8", "int8": "INT8"}


@dataclass(frozen=True)
class Ranks:
    tensor: int
    pipeline: int
    context: int = 1

    @property
    def world(self) -> int:
        return self.tensor * self.pipeline * self.context


def run_quantize(values: Mapping[str, Any]) -> None:
    """quantize.py: needs a GPU and calibration texts, and calibrates AWQ on 32 rows at most."""
    qformat = values["qformat"]
    if values["device"] != "cuda":
        raise Wrong("AssertionError: a GPU is required for quantization")
    rows = Path(values["calib_dataset"]) / "train.jsonl"
    if qformat not in ("full_prec", "int8_wo", "int4_wo") and not (
        rows.is_file() and all("text" in json.loads(line) for line in rows.read_text().splitlines())
    ):
        raise Wrong(f"ValueError: Unsupported calibration dataset {values['calib_dataset']}")
    if "awq" in qformat and values["calib_size"] > 32:
        print("AWQ calibration could take longer with calib_size = 512, Using calib_size=32 instead")
    quantization = {"quant_algo": QFORMATS[qformat], "kv_cache_quant_algo": KV_ALGOS.get(values["kv_cache_dtype"])}
    ranks = Ranks(values["tp_size"], values["pp_size"], values.get("cp_size") or 1)
    write_checkpoint(Path(values["model_dir"]), Path(values["output_dir"]), values["dtype"], ranks, quantization)


def run_convert(values: Mapping[str, Any]) -> None:
    """convert_checkpoint.py: what the flags say of the format, plain tensors otherwise."""
    quantization: dict[str, Any] = {"quant_algo": None, "kv_cache_quant_algo": None}
    if values.get("use_weight_only"):
        precision = values["weight_only_precision"]
        quantization["quant_algo"] = {"int8": "W8A16", "int4": "W4A16", "int4_awq": "W4A16_AWQ"}.get(
            precision, "W4A16_GPTQ"
        )
    elif values.get("smoothquant"):
        quantization["quant_algo"] = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"
    elif values.get("use_fp8"):
        quantization["quant_algo"] = "FP8"
    elif values.get("use_fp8_rowwise"):
        quantization["quant_algo"] = "FP8_PER_CHANNEL_PER_TOKEN"
    for flag, algorithm in (("int8_kv_cache", "INT8"), ("fp8_kv_cache", "FP8")):
        if values.get(flag):
            quantization["kv_cache_quant_algo"] = algorithm
    ranks = Ranks(values["tp_size"], values["pp_size"], values.get("cp_size") or 1)
    write_checkpoint(Path(values["model_dir"]), Path(values["output_dir"]), values["dtype"], ranks, quantization)


def write_checkpoint(
    model: Path, output: Path, dtype: str, ranks: Ranks, quantization: Mapping[str, Any], *, made_by: str = "stand-in"
) -> None:
    """A checkpoint of a Llama in Hugging Face's form; FACTS: docs/source/legacy/architecture/checkpoint.md."""
    facts = json.loads((model / "config.json").read_text())
    tensors = read_tensors(next(model.glob("*.safetensors")))
    output.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": facts["architectures"][0],
        "dtype": dtype,
        "vocab_size": facts["vocab_size"],
        "hidden_size": facts["hidden_size"],
        "intermediate_size": facts["intermediate_size"],
        "num_hidden_layers": facts["num_hidden_layers"],
        "num_attention_heads": facts["num_attention_heads"],
        "num_key_value_heads": facts["num_key_value_heads"],
        "max_position_embeddings": facts["max_position_embeddings"],
        "norm_epsilon": facts["rms_norm_eps"],
        "hidden_act": "silu",
        "position_embedding_type": "rope_gpt_neox",
        "mapping": {"world_size": ranks.world, "tp_size": ranks.tensor, "pp_size": ranks.pipeline},
        "quantization": dict(quantization),
        "made_by": made_by,
    }
    (output / "config.json").write_text(json.dumps(config, indent=1))
    for rank in range(ranks.tensor * ranks.pipeline):
        made = dict(rank_tensors(facts, tensors, ranks, rank, quantization["quant_algo"]))
        if quantization["kv_cache_quant_algo"]:
            layers = [name.removesuffix("qkv.weight") for name in made if name.endswith("attention.qkv.weight")]
            made |= {f"{layer}kv_cache_scaling_factor": ONE for layer in layers}
        write_tensors(output / f"rank{rank}.safetensors", made)


# A tensor as safetensors has it: the name of its type, and its bits as numbers of that size (bfloat16 as uint16).
Tensor = tuple[str, np.ndarray]
ONE: Tensor = ("F32", np.ones(1, np.float32).view(np.uint32))
BITS = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32, "F8_E4M3": np.uint8}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Format: https://huggingface.co/docs/safetensors. Starts faster than a library that knows these types."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    rows = json.loads(data[8 : 8 + size])
    rows.pop("__metadata__", None)
    found = {}
    for name, row in rows.items():
        first, last = (8 + size + offset for offset in row["data_offsets"])
        found[name] = (row["dtype"], np.frombuffer(data[first:last], BITS[row["dtype"]]).reshape(row["shape"]))
    return found


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    header: dict[str, Any] = {}
    position = 0
    for name, (dtype, bits) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(bits.shape), "data_offsets": [position, position + bits.nbytes]}
        position += bits.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(np.ascontiguousarray(bits).tobytes() for _, bits in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def rank_tensors(
    facts: Mapping[str, Any], tensors: Mapping[str, Tensor], ranks: Ranks, rank: int, quant_algo: str | None
) -> Iterator[tuple[str, Tensor]]:
    part, stage = rank % ranks.tensor, rank // ranks.tensor
    layers = facts["num_hidden_layers"] // ranks.pipeline

    def share(name: str, axis: int) -> Tensor:
        dtype, bits = tensors[name]
        return dtype, np.split(bits, ranks.tensor, axis)[part]

    if stage == 0:
        yield "transformer.vocab_embedding.weight", tensors["model.embed_tokens.weight"]
    for index in range(layers):
        source, here = f"model.layers.{stage * layers + index}", f"transformer.layers.{index}"
        yield f"{here}.input_layernorm.weight", tensors[f"{source}.input_layernorm.weight"]
        yield f"{here}.post_layernorm.weight", tensors[f"{source}.post_attention_layernorm.weight"]
        attention = [share(f"{source}.self_attn.{name}_proj.weight", 0) for name in "qkv"]
        qkv = (attention[0][0], np.concatenate([bits for _, bits in attention]))
        for module, weight in (
            ("attention.qkv", qkv),
            ("attention.dense", share(f"{source}.self_attn.o_proj.weight", 1)),
            ("mlp.fc", share(f"{source}.mlp.gate_proj.weight", 0)),
            ("mlp.gate", share(f"{source}.mlp.up_proj.weight", 0)),
            ("mlp.proj", share(f"{source}.mlp.down_proj.weight", 1)),
        ):
            yield from linear(f"{here}.{module}", weight, quant_algo)
    if stage == ranks.pipeline - 1:
        yield "transformer.ln_f.weight", tensors["model.norm.weight"]
        dtype, head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
        padded = np.pad(head, ((0, -len(head) % ranks.tensor), (0, 0)))
        yield "lm_head.weight", (dtype, np.split(padded, ranks.tensor)[part])


def linear(module: str, weight: Tensor, quant_algo: str | None) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a matrix in a format; of others than FP8 the weights stay as they are."""
    if quant_algo != "FP8":
        yield f"{module}.weight", weight
        return
    yield f"{module}.weight", ("F8_E4M3", np.zeros(weight[1].shape, np.uint8))
    for scale in ("weights_scaling_factor", "activation_scaling_factor"):
        yield f"{module}.{scale}", ONE
