"""Engines for tests: programs that really read and write a paged pool, and a tokenizer without training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from torch import Tensor

from trtx.models.config import ModelConfig
from trtx.models.formats import QuantFormat
from trtx.runtime.card import CompiledFor, EngineCard, KvCache, Limits, Rank
from trtx.runtime.chat import ChatTemplate
from trtx.runtime.engine import Engine
from trtx.runtime.scheduler import SchedulerSettings
from trtx.runtime.tokenizer import Tokenizer

BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 256, 257
VOCAB_SIZE = 258
# Byte-level BPE writes every byte as one printable character; sorted, "!" is the first.
A_ID = ord("a") - ord("!")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make_card(
    *,
    max_batch_size: int = 4,
    max_num_tokens: int = 64,
    max_seq_len: int = 64,
    tokens_per_block: int = 4,
) -> EngineCard:
    model = ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=VOCAB_SIZE,
        hidden_size=8,
        intermediate_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        max_position_embeddings=max_seq_len,
        norm_epsilon=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        dtype="float32",
    )
    return EngineCard(
        backend="inductor",
        model=model,
        quantization=QuantFormat(),
        dtype="float32",
        kv_cache=KvCache(dtype="float32", tokens_per_block=tokens_per_block, num_layers=2, num_kv_heads=1, head_dim=4),
        limits=Limits(max_batch_size=max_batch_size, max_num_tokens=max_num_tokens, max_seq_len=max_seq_len),
        rank=Rank(),
        compiled_for=CompiledFor(device="cpu", arch="x86-64", isa="x86-64"),
        programs={},
        kernels=None,
        weights_layout_sha256="0" * 64,
        toolchain={"torch": torch.__version__},
    )


def next_token(context: Sequence[int]) -> int:
    """What the fake model says after a context, of which every token and the order count: a letter, or the end."""
    state = 7
    for token in context:
        state = (state * 31 + token + 1) % 1_000_003
    return EOS_ID if state % 29 == 0 else A_ID + state % 26


def expected_tokens(prompt: Sequence[int], num_tokens: int, stop: int | None = EOS_ID) -> list[int]:
    """The greedy continuation of a prompt by the fake model, without any batching or paging."""
    context = list(prompt)
    for _ in range(num_tokens):
        context.append(next_token(context))
        if context[-1] == stop:
            break
    return context[len(prompt) :]


class FakePrograms:
    """Keeps token ids where real programs keep keys and values, and answers from what it finds there.

    A wrong position, table or block changes the answer. Limits of the card are held like a compiled program's.
    """

    def __init__(self, card: EngineCard, num_blocks: int = 65) -> None:
        self.card = card
        self.num_blocks = num_blocks
        self.calls: list[tuple[int, ...]] = []  # of every step, the tokens of each sequence
        self.fail_with: Exception | None = None
        self._pool_PS = np.full((num_blocks, card.kv_cache.tokens_per_block), -1, np.int64)

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
        if self.fail_with is not None:
            raise self.fail_with
        wide, narrow = (tokens_M, positions_M, slots_M, select_N), (block_tables_BW, query_starts_B1, context_lens_B)
        assert all(tensor.dtype == torch.int64 and tensor.is_contiguous() for tensor in wide)
        assert all(tensor.dtype == torch.int32 and tensor.is_contiguous() for tensor in narrow)
        starts, contexts, tables = query_starts_B1.tolist(), context_lens_B.tolist(), block_tables_BW.tolist()
        lengths = [end - start for start, end in pairwise(starts)]
        assert 1 <= len(tables) == len(lengths) == len(contexts) <= self.card.limits.max_batch_size
        assert starts[0] == 0
        assert starts[-1] == len(tokens_M) == len(positions_M) == len(slots_M) <= self.card.limits.max_num_tokens
        assert len(select_N) >= 1
        self.calls.append(tuple(lengths))
        size = self.card.kv_cache.tokens_per_block
        # A model writes the keys and values of a layer for all tokens before it reads any.
        assert len(set(slots_M.tolist())) == len(slots_M)
        assert all(slot >= size for slot in slots_M.tolist())
        self._pool_PS.reshape(-1)[slots_M.numpy()] = tokens_M.numpy()
        rows: list[tuple[int, list[int]]] = []
        for start, length, context, table in zip(starts, lengths, contexts, tables, strict=False):
            assert length >= 1
            assert positions_M[start : start + length].tolist() == list(range(context - length, context))
            rows += [(position, table) for position in range(context - length, context)]
        return torch.stack([self._logits(*rows[row]) for row in select_N.tolist()])

    def _logits(self, position: int, table: list[int]) -> Tensor:
        size = self.card.kv_cache.tokens_per_block
        context = [int(self._pool_PS[table[at // size], at % size]) for at in range(position + 1)]
        best = next_token(context)
        # The best token first, those after it less and less likely.
        distance_V = (torch.arange(VOCAB_SIZE) - best) % VOCAB_SIZE
        return -distance_V.float() * 0.5


def make_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> Tokenizer:
    """One token per byte, <s> before every text, </s> to end."""
    template = ChatTemplate(chat_template, {"bos_token": BOS, "eos_token": EOS}) if chat_template else None
    return Tokenizer(raw_tokenizer(), [EOS_ID], template)


def raw_tokenizer() -> tokenizers.Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(BOS, special=True), AddedToken(EOS, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    return tokenizer


def make_engine(
    programs: FakePrograms | None = None,
    *,
    settings: SchedulerSettings | None = None,
    overlap: bool = False,
    num_blocks: int = 65,
    **limits: int,
) -> Engine:
    programs = programs or FakePrograms(make_card(**limits), num_blocks)
    return Engine(programs, make_tokenizer(), settings=settings or SchedulerSettings(), overlap=overlap)


def write_tokenizer_folder(folder: Path) -> None:
    """The tokenizer files of a Hugging Face model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    raw_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "special_tokens_map.json").write_text(f'{{"bos_token": "{BOS}", "eos_token": "{EOS}"}}')
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {EOS_ID}}}')
