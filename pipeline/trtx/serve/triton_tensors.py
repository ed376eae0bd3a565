"""Tensors of a request to Triton, and what they become: the names are those of TensorRT-LLM's ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtx.runtime.params import RequestRefused, SamplingParams
from trtx.runtime.results import CompletionOutput, RequestOutput
from trtx.serve.schema import MAX_CHOICES

# Input → field of SamplingParams, for one number each; `seed` has the name that the ensemble had up to 0.16, too.
NUMBERS: Mapping[str, tuple[str, type]] = {
    "max_tokens": ("max_tokens", int),
    "min_tokens": ("min_tokens", int),
    "temperature": ("temperature", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "repetition_penalty": ("repetition_penalty", float),
    "presence_penalty": ("presence_penalty", float),
    "frequency_penalty": ("frequency_penalty", float),
    "num_return_sequences": ("n", int),
    "seed": ("seed", int),
    "random_seed": ("seed", int),
    "ignore_eos": ("ignore_eos", bool),
}
# Any of them turns sampling on; without them the most likely token is taken, as TensorRT-LLM does.
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
PADDING = -1


@dataclass(frozen=True)
class Asked:
    """A request in the engine's words. `texts` are the prompts where the answer has to repeat them."""

    prompts: list[str | list[int]]
    params: SamplingParams
    stream: bool
    texts: list[str]
    outputs: frozenset[str]


def read_request(request: Any) -> Asked:
    """What a request of the server's Python backend asks for.

    Raises RequestRefused for a value out of range, tensors that contradict each other, or text that is not UTF-8.
    """
    found = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    prompts, texts = _read_prompts(found)
    stream = bool(_number(found, "stream", bool) or False)
    if stream and len(prompts) != 1:
        raise RequestRefused(
            f"a request that streams has one text, not {len(prompts)}",
            param="stream",
            fix="send several requests: they are batched all the same",
        )
    params = _read_params(found)
    if params.n > MAX_CHOICES:
        raise RequestRefused(f"{params.n} answers are more than {MAX_CHOICES}", param="num_return_sequences")
    if stream and params.n != 1:
        raise RequestRefused("a request that streams has one answer", param="num_return_sequences", fix="leave it out")
    keeps = _number(found, "exclude_input_in_output", bool) is False
    if keeps and texts is None:
        raise RequestRefused(
            "exclude_input_in_output must be true for a prompt of input_ids", param="exclude_input_in_output"
        )
    return Asked(prompts, params, stream, (texts or []) if keeps else [], frozenset(request.requested_output_names()))


def make_tensors(asked: Asked, outputs: Sequence[RequestOutput], *, whole: bool) -> dict[str, Any]:
    """The tensors that a request asks for, with a row per prompt; `whole` everything, else what is new.

    Shapes, with N answers per prompt and T tokens of the longest: text_output, finish_reason [P, N]; output_ids and
    output_log_probs [P, N, T] (filled up with -1 and 0); sequence_length and cum_log_probs [P, N]; token counts [P, 1].
    """
    rows = [output.outputs for output in outputs]
    tokens = [[choice.token_ids if whole else choice.token_ids_diff for choice in row] for row in rows]
    made: dict[str, Any] = {}
    for name in sorted(asked.outputs):
        match name:
            case "text_output":
                heads = asked.texts or [""] * len(rows)
                texts = [
                    [(head + choice.text if whole else choice.text_diff) for choice in row]
                    for head, row in zip(heads, rows, strict=True)
                ]
                made[name] = _strings(texts)
            case "output_ids":
                made[name] = _padded(tokens, np.int32, PADDING)
            case "sequence_length":
                made[name] = np.array([[len(ids) for ids in row] for row in tokens], dtype=np.int32)
            case "finish_reason":
                made[name] = _strings([[choice.finish_reason or "" for choice in row] for row in rows])
            case "cum_log_probs":
                made[name] = np.array(
                    [[choice.cumulative_logprob or 0.0 for choice in row] for row in rows], np.float32
                )
            case "output_log_probs":
                made[name] = _padded([[_log_probs(choice, whole) for choice in row] for row in rows], np.float32, 0)
            case "num_input_tokens":
                made[name] = np.array([[len(output.prompt_token_ids)] for output in outputs], dtype=np.int32)
            case "num_output_tokens":
                made[name] = np.array([[sum(len(choice.token_ids) for choice in row)] for row in rows], dtype=np.int32)
    return made


def _read_prompts(found: Mapping[str, Any]) -> tuple[list[str | list[int]], list[str] | None]:
    if ("text_input" in found) == ("input_ids" in found):
        raise RequestRefused("a request has either text_input or input_ids", param="text_input")
    if "text_input" in found:
        texts = [_text(value, "text_input") for value in found["text_input"].reshape(-1)]
        return list(texts), texts
    return [row.tolist() for row in found["input_ids"]], None


def _read_params(found: Mapping[str, Any]) -> SamplingParams:
    given: dict[str, Any] = {}
    for name, (argument, kind) in NUMBERS.items():
        value = _number(found, name, kind)
        if value is None:
            continue
        if argument in given:
            raise RequestRefused(f"a request has either {name} or {argument}", param=name)
        given[argument] = value
    if (width := _number(found, "beam_width", int)) not in (None, 1):
        raise RequestRefused(f"beam_width must be 1, not {width}", param="beam_width", why="there is no beam search")
    for name, argument in (("stop_words", "stop"), ("bad_words", "bad_words")):
        if name in found:
            # Clients fill up rows of a batch with empty words.
            given[argument] = [word for word in (_text(value, name) for value in found[name].reshape(-1)) if word]
    if (end_id := _number(found, "end_id", int)) is not None:
        given["stop_token_ids"] = [end_id]
    if _number(found, "return_log_probs", bool):
        given["logprobs"] = 0
    if not any(name in found for name in SAMPLING):
        given["temperature"] = 0.0
    return SamplingParams(**given)


def _number(found: Mapping[str, Any], name: str, kind: type) -> Any:
    """The value of an input that has one for the whole request; None where it is not there."""
    if name not in found:
        return None
    values = found[name].reshape(-1)
    # A client that sends a batch repeats the value in every row.
    if len(values) == 0 or any(value != values[0] for value in values):
        raise RequestRefused(
            f"{name} must be the same for all texts of a request", param=name, fix="send a request for each text"
        )
    return kind(values[0])


def _text(value: str | bytes, name: str) -> str:
    try:
        return value if isinstance(value, str) else value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestRefused(f"{name} is not UTF-8", param=name, why=str(error)) from error


def _log_probs(choice: CompletionOutput, whole: bool) -> list[float]:
    positions = choice.logprobs or []
    new = positions if whole else positions[len(positions) - len(choice.token_ids_diff) :]
    return [next(iter(position.values())).logprob for position in new]


def _strings(rows: Sequence[Sequence[str]]) -> Any:
    return np.array([[text.encode() for text in row] for row in rows], dtype=np.object_)


def _padded(rows: Sequence[Sequence[Sequence[Any]]], dtype: Any, padding: Any) -> Any:
    width = max((len(values) for row in rows for values in row), default=0)
    return np.array([[[*values, *[padding] * (width - len(values))] for values in row] for row in rows], dtype=dtype)
