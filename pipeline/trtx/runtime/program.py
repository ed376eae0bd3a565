"""The two programs of an engine, compiled or not, with the key-value pools they work on.

Legend: B sequences, T tokens per sequence (padded), W blocks per table, N selected rows, V vocabulary.
"""

from __future__ import annotations

import tempfile
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trtx.errors import EnvironmentProblem, VerificationFailed
from trtx.files import sha256_file
from trtx.models.layout import make_layout
from trtx.models.weights_config import load_weights_config
from trtx.models.weights_file import map_weights
from trtx.runtime.card import EngineCard, KvCache, load_card
from trtx.runtime.fit import check_machine

# The name under which the compiler files its code in a package.
PACKAGE_MODEL = "model"


class Programs(Protocol):
    """What a scheduler drives. The pools are inside; block 0 is the null block and must never be allocated.

    tokens, positions, block tables and selected rows are int64 on the CPU; logits are float32. Positions are absolute;
    a padding token has position -1. See models/llama.py for what the programs compute.
    """

    card: EngineCard
    num_blocks: int

    def prefill(self, tokens_BT: Tensor, positions_BT: Tensor, block_tables_BW: Tensor, select_N: Tensor) -> Tensor:
        """Logits [N, V] of rows of the flattened [B·T] grid; keys and values of all tokens go to the pools."""
        ...

    def decode(self, tokens_B: Tensor, positions_B: Tensor, block_tables_BW: Tensor) -> Tensor:
        """Logits [B, V] after one more token of every sequence."""
        ...


class Decoder(Protocol):
    """A module of trtx.models: the programs before compilation, with the pools as arguments."""

    def prefill(
        self, tokens_BT: Tensor, positions_BT: Tensor, block_tables_BW: Tensor, select_N: Tensor, *pools: Tensor
    ) -> Tensor: ...

    def decode(self, tokens_B: Tensor, positions_B: Tensor, block_tables_BW: Tensor, *pools: Tensor) -> Tensor: ...


class EagerPrograms:
    """The same module, not compiled: what compiled programs are compared with."""

    def __init__(self, card: EngineCard, model: Decoder, num_blocks: int) -> None:
        self.card = card
        self.num_blocks = num_blocks
        self._model = model
        self._pools = make_pools(card.kv_cache, num_blocks)

    @torch.inference_mode()
    def prefill(self, tokens_BT: Tensor, positions_BT: Tensor, block_tables_BW: Tensor, select_N: Tensor) -> Tensor:
        return self._model.prefill(tokens_BT, positions_BT, block_tables_BW, select_N, *self._pools)

    @torch.inference_mode()
    def decode(self, tokens_B: Tensor, positions_B: Tensor, block_tables_BW: Tensor) -> Tensor:
        return self._model.decode(tokens_B, positions_B, block_tables_BW, *self._pools)


class CompiledPrograms:
    """Programs compiled ahead of time, over weights mapped from a file.

    Not for two threads at once: a call holds the GIL while it runs, and a second call into the same package would
    wait for it with the GIL in hand, for ever. That case raises RuntimeError instead.
    """

    def __init__(
        self, card: EngineCard, packages: Mapping[str, Path], weights: Mapping[str, Tensor], num_blocks: int
    ) -> None:
        self.card = card
        self.num_blocks = num_blocks
        self._pools = make_pools(card.kv_cache, num_blocks)
        self._weights = weights  # the packages keep bare pointers into these tensors
        self._busy = threading.Lock()
        self._prefill = _load_package(packages["prefill"], weights)
        self._decode = _load_package(packages["decode"], weights)

    def prefill(self, tokens_BT: Tensor, positions_BT: Tensor, block_tables_BW: Tensor, select_N: Tensor) -> Tensor:
        return self._call(self._prefill, [tokens_BT, positions_BT, block_tables_BW, select_N])

    def decode(self, tokens_B: Tensor, positions_B: Tensor, block_tables_BW: Tensor) -> Tensor:
        return self._call(self._decode, [tokens_B, positions_B, block_tables_BW])

    def _call(self, package: Any, inputs: list[Tensor]) -> Tensor:
        if any(tensor.dtype != torch.int64 for tensor in inputs):
            raise TypeError("a program's inputs are int64")
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("an engine's programs may be called by one thread at a time")
        try:
            # Compiled code trusts strides: it was made for contiguous inputs.
            logits: Tensor = package.boxed_run([*(tensor.contiguous() for tensor in inputs), *self._pools])[0]
            return logits
        finally:
            self._busy.release()


def load_programs(engine: Path, weights: Path, num_blocks: int, *, verify: bool = True) -> CompiledPrograms:
    """Load an engine folder with the weights of one rank.

    `engine` holds engine.json and programs/, `weights` config.json and rankN.safetensors; `num_blocks` counts the
    null block. `verify` reads the programs once more to compare their digests: they are machine code.

    Raises EnvironmentProblem when the engine does not fit this machine, VerificationFailed when a program is not
    what the card says or the weights have another layout.
    """
    card = load_card(engine)
    check_machine(card)
    packages: dict[str, Path] = {name: engine / program.path for name, program in card.programs.items()}
    for name, program in card.programs.items():
        if verify and (not packages[name].is_file() or sha256_file(packages[name]) != program.sha256):
            raise VerificationFailed(
                f"the {name} program of {engine} is not the one its card names",
                why=f"{program.path} is missing or its SHA-256 differs",
                fix="rebuild the engine with `trtx apply`",
            )
    return CompiledPrograms(card, packages, load_weights(card, weights), num_blocks)


def load_weights(card: EngineCard, weights: Path) -> dict[str, Tensor]:
    """Map the weight file that belongs to the card's rank.

    Raises VerificationFailed when its layout is not the one the programs were compiled for, or it is damaged.
    """
    config = load_weights_config(weights)
    tensor, pipeline, rank = card.rank.tensor, card.rank.pipeline, card.rank.rank
    layout = make_layout(card.model, card.quantization, card.dtype, tensor, pipeline, rank)
    found = config.ranks[rank].layout_sha256 if rank < len(config.ranks) else "no such rank"
    if found != card.weights_layout_sha256 or found != layout.sha256:
        raise VerificationFailed(
            f"the weights in {weights} were not made for this engine",
            why=f"layout {found[:12]} instead of {card.weights_layout_sha256[:12]}",
            fix="convert the checkpoint with the model, quantization, dtype and parallelism of the engine",
        )
    return map_weights(weights / config.ranks[rank].file, layout.tensors)


def make_pools(kv_cache: KvCache, num_blocks: int) -> list[Tensor]:
    """Zeroed pools, all layers' keys and then all layers' values, [num_blocks, S, G, D] each; fp8 as uint8 bits.

    Raises EnvironmentProblem when there is not enough memory.
    """
    shape = (num_blocks, kv_cache.tokens_per_block, kv_cache.num_kv_heads, kv_cache.head_dim)
    dtype = torch.uint8 if kv_cache.dtype == "float8_e4m3fn" else getattr(torch, kv_cache.dtype)
    try:
        return [torch.zeros(shape, dtype=dtype) for _ in range(2 * kv_cache.num_layers)]
    except RuntimeError as error:
        raise EnvironmentProblem(
            f"there is not enough memory for {num_blocks} blocks of KV cache",
            why=str(error).splitlines()[0],
            fix="give the KV cache a smaller memory fraction",
        ) from error


def _load_package(package: Path, weights: Mapping[str, Tensor]) -> Any:
    # Unpacked by ourselves and deleted once mapped: the loader's own copy would stay behind after a crash.
    with tempfile.TemporaryDirectory(prefix="trtx-program-") as folder:
        with zipfile.ZipFile(package) as archive:
            archive.extractall(folder)
        loader = torch._C._aoti.AOTIModelPackageLoader(folder, PACKAGE_MODEL, False, 1, -1)
    constants = {name: weights[name] for name in loader.get_constant_fqns()}
    # use_inactive, check_full_update, user_managed: the package keeps pointers to the mapped file, no copies.
    loader.load_constants(constants, False, True, True)
    return loader
