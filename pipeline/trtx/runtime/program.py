"""The program of an engine, compiled or not, with the key-value pools it works on.

Legend: M tokens of a step, all its sequences flattened without padding; B sequences, W blocks per table, N selected
rows, V vocabulary.
"""

from __future__ import annotations

import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from trtx.errors import EnvironmentProblem, VerificationFailed
from trtx.files import sha256_file
from trtx.models.layout import make_layout
from trtx.models.weights_config import load_weights_config
from trtx.models.weights_file import map_weights
from trtx.runtime.card import EngineCard, KvCache, load_card
from trtx.runtime.fit import check_machine
from trtx.runtime.memory import PoolSize
from trtx.runtime.native import NativeProgram, load_kernels
from trtx.runtime.ranks import Join, Run, in_group

# The name under which the compiler files its code in a package.
PACKAGE_MODEL = "model"

# Types of the inputs of a step, in order.
INPUT_TYPES = (torch.int64,) * 3 + (torch.int32,) * 3 + (torch.int64,)


class Programs(Protocol):
    """What a scheduler drives. The pools are inside; block 0 is the null block and must never be allocated."""

    card: EngineCard
    num_blocks: int

    def step(
        self,
        tokens_M: Tensor,
        positions_M: Tensor,
        slots_M: Tensor,
        block_tables_BW: Tensor,
        query_starts_B1: Tensor,
        context_lens_B: Tensor,
        select_N: Tensor,
    ) -> Tensor:
        """Logits [N, V], float32, of chosen tokens; keys and values of all tokens go to the pools.

        See models/decoder.py for the inputs; all are on the CPU, and at least one sequence, token and row.
        """
        ...


class Decoder(Protocol):
    """A module of trtx.models: the program before compilation, with the pools as arguments."""

    def step(
        self,
        tokens_M: Tensor,
        positions_M: Tensor,
        slots_M: Tensor,
        block_tables_BW: Tensor,
        query_starts_B1: Tensor,
        context_lens_B: Tensor,
        select_N: Tensor,
        *pools: Tensor,
    ) -> Tensor: ...


class EagerPrograms:
    """The same module, not compiled, on the card's device: what the compiled program is compared with."""

    def __init__(self, card: EngineCard, model: Decoder, num_blocks: int) -> None:
        self.card = card
        self.num_blocks = num_blocks
        self._model = model
        self._device = card.compiled_for.device
        self._pools = make_pools(card.kv_cache, num_blocks, self._device)

    @torch.inference_mode()
    def step(self, *inputs: Tensor) -> Tensor:
        return self._model.step(*(tensor.to(self._device) for tensor in inputs), *self._pools).float().cpu()


class CompiledPrograms:
    """The program compiled ahead of time, over weights mapped from a file.

    A call releases the GIL. Pools are changed without locks, so it is for one thread at a time: RuntimeError otherwise.
    """

    def __init__(self, card: EngineCard, program: Run, num_blocks: int) -> None:
        self.card = card
        self.num_blocks = num_blocks
        self._pools = make_pools(card.kv_cache, num_blocks)
        self._busy = threading.Lock()
        self._program = program

    def step(self, *inputs: Tensor) -> Tensor:
        if tuple(tensor.dtype for tensor in inputs) != INPUT_TYPES:
            raise TypeError(f"the program's inputs are {', '.join(map(str, INPUT_TYPES))}")
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("an engine's programs may be called by one thread at a time")
        try:
            # Compiled code trusts strides: it was made for contiguous inputs.
            return self._program([*(tensor.contiguous() for tensor in inputs), *self._pools])[0]
        finally:
            self._busy.release()


def load_programs(engine: Path, weights: Path, num_blocks: int | PoolSize, *, verify: bool = True) -> Programs:
    """Load an engine folder with its weights: CompiledPrograms, CudaPrograms for a GPU, or RankPrograms of several.

    `engine` holds engine.json and programs/, `weights` config.json and rankN.safetensors; `num_blocks` counts the
    null block, or says how large the pools of each rank shall be. `verify` reads the programs once more to compare
    their digests: they are machine code. Tensor-parallel ranks other than 0 are processes that live as long as what is
    returned.

    Raises EnvironmentProblem when the engine does not fit this machine or its memory, VerificationFailed when a program
    is not what the card says or the weights have another layout.
    """
    card = load_card(engine)
    check_machine(card)
    for name, code in card.code.items():
        if verify and (not (engine / code.path).is_file() or sha256_file(engine / code.path) != code.sha256):
            raise VerificationFailed(
                f"the {name} of {engine} is not the one its card names",
                why=f"{code.path} is missing or its SHA-256 differs",
                fix="rebuild the engine with `trtx apply`",
            )
    if card.rank.tensor > 1:
        from trtx.runtime.rank_programs import load_ranks

        return load_ranks(engine, weights, card, num_blocks)
    return load_rank(engine, weights, card, num_blocks)


def load_rank(
    engine: Path, weights: Path, card: EngineCard, num_blocks: int | PoolSize, join: Join | None = None
) -> Programs:
    """The programs of the card's rank; `join`, of several ranks, is called once what needs no other is loaded.

    Raises VerificationFailed when weights or kernels are not the card's, EnvironmentProblem when memory is short.
    """
    if card.compiled_for.device == "cuda":
        from trtx.runtime import cuda_load

        return cuda_load.load_programs(engine, weights, card, num_blocks, join)
    if card.kernels is None:
        raise VerificationFailed(
            f"{engine} has no kernels", why="its card names none", fix="build it with `trtx apply`"
        )
    if isinstance(num_blocks, PoolSize):
        num_blocks = num_blocks.count_blocks(card)
    mapped = load_weights(card, weights)
    operators = load_kernels(engine / card.kernels.path, card.kernels.namespace)
    # Unpacked by ourselves and deleted once mapped: the loader's own copy would stay behind after a crash.
    with tempfile.TemporaryDirectory(prefix="trtx-program-") as folder:
        with zipfile.ZipFile(engine / card.programs["step"].path) as archive:
            archive.extractall(folder)
        program: Run = NativeProgram(operators, Path(folder), PACKAGE_MODEL, mapped)
    if join is not None:
        program = in_group(program, join())
    return CompiledPrograms(card, program, num_blocks)


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


def make_pools(kv_cache: KvCache, num_blocks: int, device: str = "cpu") -> list[Tensor]:
    """Zeroed pools, all layers' keys and then all layers' values, [num_blocks, S, G, D] each; fp8 as uint8 bits.

    Raises EnvironmentProblem when there is not enough memory.
    """
    shape = (num_blocks, kv_cache.tokens_per_block, kv_cache.num_kv_heads, kv_cache.head_dim)
    dtype = torch.uint8 if kv_cache.dtype == "float8_e4m3fn" else getattr(torch, kv_cache.dtype)
    try:
        return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2 * kv_cache.num_layers)]
    except RuntimeError as error:
        raise EnvironmentProblem(
            f"there is not enough memory for {num_blocks} blocks of KV cache",
            why=str(error).splitlines()[0],
            fix="give the KV cache a smaller memory fraction",
        ) from error
