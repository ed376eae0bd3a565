"""The module of an engine, put together from shapes alone or over weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import BrokenBarrierError

import torch
from torch import Tensor

from trtx.errors import UsageProblem
from trtx.kernels.collectives import use_group
from trtx.models.attention import AttentionKind
from trtx.models.config import DType, ModelConfig
from trtx.models.decoder import Decoder
from trtx.models.formats import QuantFormat
from trtx.models.fused import FusedDecoder, can_fuse
from trtx.models.layout import make_shard
from trtx.quant.linear import LINEARS, linear_factory
from trtx.quant.linear_cuda import CUDA_LINEARS
from trtx.runtime.card import Device, EngineCard, Rank, load_card
from trtx.runtime.program import EagerPrograms, load_weights
from trtx.runtime.ranks import Meeting, ThreadRanks


def make_module(
    config: ModelConfig,
    quantization: QuantFormat,
    dtype: DType,
    rank: Rank,
    max_seq_len: int,
    attention: AttentionKind = "gather",
    device: Device = "cpu",
) -> Decoder:
    """One rank's module on the meta device: shapes without values. `device` is the one that it will compute on.

    Raises UsageProblem for sequences longer than the model has positions.
    """
    if max_seq_len > config.max_position_embeddings:
        raise UsageProblem(
            f"max_seq_len {max_seq_len} is more than the model's {config.max_position_embeddings} positions",
            fix=f"set engine.limits.max_seq_len to {config.max_position_embeddings} or less",
        )
    shard = make_shard(config, rank.tensor, rank.pipeline, rank.rank)
    with torch.device("meta"):
        linears = CUDA_LINEARS if device == "cuda" else LINEARS
        make_linear = linear_factory(config, quantization, dtype, shard, linears)
        kind = getattr(torch, dtype)
        is_fused = device == "cuda" and can_fuse(config, shard, dtype)
        decoder = FusedDecoder if is_fused else Decoder
        module = decoder(config, shard, quantization.kv_cache, kind, make_linear, max_seq_len, attention)
        return module.eval()


def make_eager(
    card: EngineCard, weights: Mapping[str, Tensor], num_blocks: int, attention: AttentionKind = "gather"
) -> EagerPrograms:
    """The engine's module over weights that are taken as they are, on a processor without a copy."""
    limit, device = card.limits.max_seq_len, card.compiled_for.device
    module = make_module(card.model, card.quantization, card.dtype, card.rank, limit, attention, device)
    module.load_state_dict({name: tensor.to(device) for name, tensor in weights.items()}, strict=True, assign=True)
    return EagerPrograms(card, module, num_blocks)


class EagerRanks:
    """The modules of all ranks in this one process, each in a thread, on the first device."""

    def __init__(self, ranks: Sequence[EagerPrograms]) -> None:
        self.card, self.num_blocks = ranks[0].card, ranks[0].num_blocks
        self._ranks = ranks

    def step(self, *inputs: Tensor) -> Tensor:
        """See Programs: the logits of rank 0."""
        meeting = Meeting(len(self._ranks))

        def run(rank: int) -> Tensor:
            try:
                with meeting.turn, use_group(ThreadRanks(meeting, rank)):
                    return self._ranks[rank].step(*inputs)
            except BaseException:
                meeting.leave()
                raise

        with ThreadPoolExecutor(len(self._ranks)) as pool:
            running = [pool.submit(run, rank) for rank in range(len(self._ranks))]
        # An error before those of the ranks that only heard of it.
        errors = [error for one in running if (error := one.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):
            raise error
        return running[0].result()


def load_eager(
    engine: Path, weights: Path, num_blocks: int, attention: AttentionKind = "gather"
) -> EagerPrograms | EagerRanks:
    """The eager twin of `trtx.runtime.program.load_programs`; needs no compiled programs, and no other process.

    Raises VerificationFailed when the weights have another layout than the card's.
    """
    card = load_card(engine)
    cards = [card.for_rank(rank) for rank in range(card.rank.tensor)]
    ranks = [make_eager(own, load_weights(own, weights), num_blocks, attention) for own in cards]
    return ranks[0] if len(ranks) == 1 else EagerRanks(ranks)
