"""Sizes of an engine: what the builder refuses, clips, raises or only warns of."""

from __future__ import annotations

from collections.abc import Iterator

from trtx.backends.tensorrt_llm.from_recipe import make_pool
from trtx.backends.tensorrt_llm.refusals.base import Refusal, Subject, refuse_by

LIMITS = ("engine", "limits")
TOKENS = (*LIMITS, "max_num_tokens")
MANY_TOKENS = 16384
EAGLE_BATCH, EAGLE_DRAFT = 512, 256
WITH_PROFILES = ("throughput", "long-context")


def check_sequence(subject: Subject) -> Iterator[Refusal]:
    limits, shape = subject.engine.limits, subject.shape
    if limits.max_input_len is not None and limits.max_input_len > limits.max_seq_len:
        what = f"max_input_len {limits.max_input_len} is more than max_seq_len {limits.max_seq_len}"
        fix = f"write {limits.max_seq_len} or less"
        why = f"trtllm-build goes on with {limits.max_seq_len}"
        yield refuse_by(subject, "max-input-len", (*LIMITS, "max_input_len"), what, fix, why=why)
    if shape is None:
        return
    positions = round(shape.max_position_embeddings * shape.rope_factor)
    if limits.max_seq_len > positions:
        what = f"max_seq_len {limits.max_seq_len} is more than the model's {positions} positions"
        fix = f"write {positions} or less"
        why = "TensorRT-LLM only warns, and answers beyond that length are noise"
        yield refuse_by(subject, "max-seq-len", (*LIMITS, "max_seq_len"), what, fix, why=why)


def check_tokens(subject: Subject) -> Iterator[Refusal]:
    limits = subject.engine.limits
    tokens, most = limits.max_num_tokens, limits.max_seq_len * limits.max_batch_size
    block = make_pool(subject.engine, subject.release, subject.flow).tokens_per_block
    if subject.flow == "engine" and tokens > most:
        what = f"max_num_tokens {tokens} is more than max_seq_len × max_batch_size = {most}"
        yield refuse_by(
            subject, "max-num-tokens", TOKENS, what, f"write {most} or less", why=f"trtllm-build goes on with {most}"
        )
    if subject.flow == "engine" and tokens < block:
        what = f"max_num_tokens {tokens} is less than a block of {block} tokens"
        yield refuse_by(
            subject, "max-num-tokens", TOKENS, what, f"write at least {block}", why=f"trtllm-build goes on with {block}"
        )
    if tokens > MANY_TOKENS:
        what = f"max_num_tokens {tokens} is more than {MANY_TOKENS}"
        why = "activations grow with it, and take the memory of the KV cache"
        yield refuse_by(subject, "max-num-tokens-large", TOKENS, what, "8192 is enough for most GPUs", why=why)


def check_optimum(subject: Subject) -> Iterator[Refusal]:
    options = subject.engine.build_options
    if "opt_num_tokens" not in options or subject.flow != "engine":
        return
    place = subject.place_of("opt_num_tokens")
    preset = subject.engine.preset
    if subject.engine.profiles or (subject.engine.profiles is None and preset in WITH_PROFILES):
        what = "opt_num_tokens cannot be set beside several profiles"
        why = "" if subject.engine.profiles else f"the preset {preset} has several profiles, and then the build fails"
        fix = "remove it, or write engine.profiles: false"
        yield refuse_by(subject, "opt-num-tokens-profiles", place, what, fix, why=why, at_key=True)
    optimum, most = options["opt_num_tokens"], subject.engine.limits.max_num_tokens
    if isinstance(optimum, int) and optimum > most:
        yield Refusal(
            "opt-num-tokens",
            place,
            f"opt_num_tokens {optimum} is more than max_num_tokens {most}",
            "TensorRT refuses a profile whose optimum is above its maximum",
            f"write {most} or less",
            "tensorrt_llm/_common.py:261",
        )


def check_drafts(subject: Subject) -> Iterator[Refusal]:
    wanted, limits = subject.engine.speculative, subject.engine.limits
    if wanted is None:
        return
    needed = limits.max_batch_size * (wanted.max_draft_len + 1)
    if limits.max_num_tokens < needed:
        what = f"max_num_tokens {limits.max_num_tokens} is less than max_batch_size × (max_draft_len + 1) = {needed}"
        why = "every sequence of a batch checks its guesses and one token more in each step"
        yield refuse_by(subject, "speculative-num-tokens", TOKENS, what, f"write at least {needed}", why=why)
    if wanted.mode in ("eagle", "eagle3"):
        yield from _check_eagle(subject, limits.max_batch_size, wanted.max_draft_len)
    if subject.flow == "engine":
        longer = limits.max_seq_len + wanted.max_draft_len
        what = f"max_seq_len {limits.max_seq_len} becomes {longer} with speculative decoding"
        fix = "nothing is to be done; the KV cache of a sequence is that much larger"
        yield refuse_by(subject, "speculative-seq-len", ("engine", "speculative"), what, fix, at_key=True)


def _check_eagle(subject: Subject, batch: int, draft: int) -> Iterator[Refusal]:
    if batch > EAGLE_BATCH:
        what = f"EAGLE takes a max_batch_size of {EAGLE_BATCH}, and here is {batch}"
        yield refuse_by(subject, "eagle-limits", (*LIMITS, "max_batch_size"), what, f"write {EAGLE_BATCH} or less")
    if draft > EAGLE_DRAFT:
        what = f"EAGLE takes a max_draft_len of {EAGLE_DRAFT}, and here is {draft}"
        place = ("engine", "speculative", "max_draft_len")
        yield refuse_by(subject, "eagle-limits", place, what, f"write {EAGLE_DRAFT} or less")


CHECKS = (check_sequence, check_tokens, check_optimum, check_drafts)
