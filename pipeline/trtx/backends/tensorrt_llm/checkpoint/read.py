"""Reads a TensorRT-LLM checkpoint back: joins the ranks, multiplies numbers by their scales, and names by Hugging Face.

The inverse of write.py, for tests, comparisons and people who have no other copy. Weights are as y = x · Wᵀ sees them:
input scales (prequant_scaling_factor) are multiplied in. What was not quantized comes back bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from trtx.backends.tensorrt_llm.checkpoint.blocks import (
    Block,
    attention_blocks,
    expert_blocks,
    mlp_blocks,
    router_name,
)
from trtx.backends.tensorrt_llm.checkpoint.check import check_checkpoint
from trtx.backends.tensorrt_llm.checkpoint.config import CONFIG_NAME, CheckpointConfig, read_config
from trtx.backends.tensorrt_llm.checkpoint.formats import GROUPED, CheckpointFormat
from trtx.backends.tensorrt_llm.checkpoint.share import Share, make_share
from trtx.errors import UsageProblem, VerificationFailed
from trtx.models.config import load_architecture
from trtx.models.json_files import read_json_file
from trtx.quant.unpack import E2M1

# One rank's tensors below a module, by suffix.
Parts = Mapping[str, Tensor]
Named = Iterator[tuple[str, Tensor]]


def read_weights(folder: Path) -> Named:
    """Hugging Face's names and tensors, layer by layer; quantized matrices as float32, the rest in its own dtype.

    Memory holds one joined matrix at a time. Raises VerificationFailed for a checkpoint that is not whole or whose
    ranks contradict each other, UsageProblem for one whose tensors are not known here.
    """
    for problem in check_checkpoint(folder):
        if problem.severity == "error":
            raise VerificationFailed(f"{folder / problem.file}: {problem.what}", why=problem.why)
        if problem.severity == "unchecked":
            raise UsageProblem(f"{folder} cannot be read back", why=problem.what)
    config = read_config(read_json_file(folder / CONFIG_NAME))
    for stage in range(config.ranks.pipeline):
        with ExitStack() as stack:
            ranks = range(stage * config.ranks.tensor, (stage + 1) * config.ranks.tensor)
            files = [stack.enter_context(safe_open(folder / f"rank{n}.safetensors", framework="pt")) for n in ranks]
            yield from _Stage(config, [make_share(config.sizes, config.ranks, n) for n in ranks], files).read()


class _Stage:
    """The rank files of one pipeline stage."""

    def __init__(self, config: CheckpointConfig, shares: Sequence[Share], files: Sequence[Any]) -> None:
        self.config, self.sizes, self.shares, self.files = config, config.sizes, shares, files
        self.names = load_architecture(config.sizes.architecture)
        self.keys = [frozenset(file.keys()) for file in files]

    def read(self) -> Named:
        first, names = self.shares[0], self.names
        if first.is_first:
            embed = f"{names.base_source(names.embed)}.weight"
            yield embed, self._vocab("transformer.vocab_embedding.weight", self.config.parallel_embedding)
        for local, layer in enumerate(first.layers):
            yield from self._layer(f"transformer.layers.{local}", layer)
        if first.is_last:
            yield f"{names.base_source(names.final_norm)}.weight", self._same("transformer.ln_f.weight")
            if "lm_head.weight" in self.keys[0]:
                yield f"{names.head}.weight", self._vocab("lm_head.weight", True)

    def _layer(self, here: str, layer: int) -> Named:
        for norm, (_, name) in zip(("input_layernorm", "post_layernorm"), self.names.layer_norms, strict=True):
            yield f"{self.names.layer_source(layer, name)}.weight", self._same(f"{here}.{norm}.weight")
        yield from self._matrices(here, layer, attention_blocks)
        if self.config.form.kv_cache is not None:
            scale = self._same(f"{here}.attention.kv_cache_scaling_factor")
            for name, which in zip(self.names.qkv[1:], "kv", strict=True):
                yield f"{self.names.layer_source(layer, name)}.{which}_scale", scale.reshape(())
        if not self.sizes.num_experts:
            yield from self._matrices(here, layer, mlp_blocks)
            return
        yield f"{router_name(self.names, layer)}.weight", self._same(f"{here}.mlp.router.weight")
        yield from self._experts(here, layer)

    def _matrices(self, here: str, layer: int, blocks_of: Callable[..., dict[str, Block]]) -> Named:
        blocks = [blocks_of(self.sizes, share, layer) for share in self.shares]
        for module in blocks[0]:
            own, form = [each[module] for each in blocks], self.config.form.of(f"{here}.{module}")
            parts = [self._parts(rank, f"{here}.{module}") for rank in range(len(self.files))]
            whole = _join([(block, _dequantize(part, form)) for block, part in zip(own, parts, strict=True)])
            yield from ((f"{name}.weight", tensor) for name, tensor in whole.items())
            if "bias" in parts[0]:
                yield from self._biases(own, [part["bias"] for part in parts])

    def _biases(self, blocks: Sequence[Block], biases: Sequence[Tensor]) -> Named:
        one = range(1)
        columns = [Block(block.names, block.rows, one, block.cut) for block in blocks]
        whole = _join([(block, bias[:, None]) for block, bias in zip(columns, biases, strict=True)])
        yield from ((f"{name}.bias", tensor[:, 0]) for name, tensor in whole.items())

    def _experts(self, here: str, layer: int) -> Named:
        form = self.config.form.of(f"{here}.mlp")
        blocks = [expert_blocks(self.sizes, share, layer) for share in self.shares]
        for module in blocks[0]:
            pieces: dict[tuple[str, ...], list[tuple[Block, Tensor]]] = {}
            for rank, own in enumerate(blocks):
                parts = self._parts(rank, f"{here}.{module}")
                for number, block in enumerate(own[module]):
                    pieces.setdefault(block.names, []).append((block, _dequantize_expert(parts, number, form)))
            for joined in pieces.values():
                yield from ((f"{name}.weight", tensor) for name, tensor in _join(joined).items())

    def _parts(self, rank: int, module: str) -> dict[str, Tensor]:
        prefix = f"{module}."
        found = [key for key in self.keys[rank] if key.startswith(prefix)]
        return {key.removeprefix(prefix): self.files[rank].get_tensor(key) for key in found}

    def _same(self, name: str) -> Tensor:
        first, *others = (file.get_tensor(name) for file in self.files)
        if any(not torch.equal(first, other) for other in others):
            raise VerificationFailed(f"{name} is not alike on all ranks of a stage", fix="convert the checkpoint again")
        whole: Tensor = first
        return whole

    def _vocab(self, name: str, is_cut: bool) -> Tensor:
        if not is_cut:
            return self._same(name)
        return torch.cat([file.get_tensor(name) for file in self.files])[: self.sizes.vocab_size]


def _join(pieces: Sequence[tuple[Block, Tensor]]) -> dict[str, Tensor]:
    """Whole matrices by name of parts of them. Raises VerificationFailed when parts that overlap differ."""
    first, numbers = pieces[0]
    columns = max(block.columns.stop for block, _ in pieces)
    found: dict[str, Tensor] = {}
    for index, name in enumerate(first.names):
        height = max(block.rows[index].stop for block, _ in pieces)
        found[name] = numbers.new_zeros(height, columns)
    seen: set[tuple[str, int, int]] = set()
    for block, tensor in pieces:
        start = 0
        for name, rows in block.pairs:
            part = tensor[start : start + len(rows)]
            place = found[name][rows.start : rows.stop, block.columns.start : block.columns.stop]
            key = (name, rows.start, block.columns.start)
            if key in seen and not torch.equal(place, part):
                raise VerificationFailed(f"ranks that share rows of {name} differ", fix="convert the checkpoint again")
            place.copy_(part)
            seen.add(key)
            start += len(rows)
    return found


def _dequantize(parts: Parts, form: CheckpointFormat) -> Tensor:
    """The matrix [N, K] that one rank's tensors stand for."""
    weight, algo = parts["weight"], form.quant_algo
    if "per_channel_scale" in parts and weight.dtype == torch.int8:
        raise UsageProblem("weight-only numbers in the kernels' layout cannot be read back")
    if algo in GROUPED:
        codes = torch.stack([weight << 4, weight], 1).flatten(0, 1) >> 4
        value = codes.float() * parts["weights_scaling_factor"].repeat_interleave(form.group_size, 1)
    elif algo == "NVFP4":
        pairs = torch.stack([weight & 15, weight >> 4], -1).flatten(1).int()
        numbers = torch.tensor([*E2M1, *(-number for number in E2M1)])[pairs]
        steps = parts["weights_scaling_factor"].float() * parts["weights_scaling_factor_2"]
        value = numbers * steps.repeat_interleave(form.group_size, 1)
    elif algo in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "W8A8_SQ_PER_CHANNEL"):
        scale = parts["per_channel_scale" if algo == "FP8_PER_CHANNEL_PER_TOKEN" else "weights_scaling_factor"]
        value = weight.float() * scale.reshape(-1, 1)
    else:
        return weight
    smooth = parts.get("prequant_scaling_factor")
    return value if smooth is None else value * smooth.float()


def _dequantize_expert(parts: Parts, number: int, form: CheckpointFormat) -> Tensor:
    weight = parts["weight"][number]
    return weight.float() * parts["weights_scaling_factor"][number] if form.quant_algo == "FP8" else weight
