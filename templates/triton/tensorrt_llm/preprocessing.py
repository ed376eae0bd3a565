"""Triton model: text, stop words and limits of a request as the tensors of TensorRT-LLM's backend.

It also refuses to load beside an engine that this container cannot run, so that the server never gets ready with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from check_engine import Mismatch, check_folder
from tokens import Tokenizer, flag, parameter, text_of, word_list


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        try:
            check_folder(parameter(config, "gpt_model_path"))
        except Mismatch as mismatch:
            raise pb_utils.TritonModelException(str(mismatch)) from None
        try:
            self.tokenizer = Tokenizer(parameter(config, "tokenizer_dir"))
        except (FileNotFoundError, ValueError) as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.special = flag(config, "add_special_tokens", True)
        self.vocab_size = int(parameter(config, "vocab_size"))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            return pb_utils.InferenceResponse(self._prepare(request))
        except ValueError as error:
            return pb_utils.InferenceResponse([], error=_invalid(str(error)))
        except Exception as problem:  # noqa: BLE001 - the batch has other requests
            return pb_utils.InferenceResponse([], error=pb_utils.TritonError(f"{type(problem).__name__}: {problem}"))

    def _prepare(self, request: Any) -> list[Any]:
        queries = _strings(request, "QUERY")
        lengths = _array(request, "REQUEST_OUTPUT_LEN").reshape(len(queries), -1).astype(np.int32)
        if (lengths < 1).any():
            raise ValueError(f"max_tokens must be at least 1, not {lengths.min()}")
        rows = [self._encode(texts) for texts in queries]
        end_ids = _ids(request, "END_ID", len(rows), self.tokenizer.end_id)
        pad_ids = _ids(request, "PAD_ID", len(rows), self.tokenizer.pad_id)
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int32)
        for row, tokens in enumerate(rows):
            ids[row, :] = max(pad_ids[row, 0], 0)
            ids[row, : len(tokens)] = tokens
        # The backend knows one end; a model may have several.
        others = self.tokenizer.eos_ids[1:] if _array(request, "END_ID") is None else ()
        stops = _strings(request, "STOP_WORDS_DICT") or [[] for _ in rows]
        bads = _strings(request, "BAD_WORDS_DICT") or [[] for _ in rows]
        tensors = {
            "INPUT_ID": ids,
            "REQUEST_INPUT_LEN": np.array([[len(tokens)] for tokens in rows], dtype=np.int32),
            "REQUEST_OUTPUT_LEN": lengths,
            "STOP_WORDS_IDS": word_list(self.tokenizer, stops, others),
            "BAD_WORDS_IDS": word_list(self.tokenizer, bads),
            "EMBEDDING_BIAS": self._bias(request, len(rows)),
            "OUT_END_ID": end_ids,
            "OUT_PAD_ID": pad_ids,
        }
        return [pb_utils.Tensor(name, value) for name, value in tensors.items()]

    def _encode(self, texts: Sequence[str]) -> list[int]:
        ids: list[int] = self.tokenizer.encode(texts[0], add_special_tokens=self.special)
        if not ids:
            raise ValueError("text_input has no token")
        return ids

    def _bias(self, request: Any, count: int) -> Any:
        """Added to the logits: float32 [rows, vocabulary], or [rows, 0] for none."""
        words = _strings(request, "EMBEDDING_BIAS_WORDS")
        if not words:
            return np.zeros((count, 0), dtype=np.float32)
        weights = _array(request, "EMBEDDING_BIAS_WEIGHTS")
        bias = np.zeros((count, self.vocab_size), dtype=np.float32)
        for row, listed in enumerate(words):
            if weights is None or len(weights[row]) != len(listed):
                raise ValueError("embedding_bias_weights must have one weight for each of embedding_bias_words")
            for word, weight in zip(listed, weights[row], strict=True):
                for token in self.tokenizer.encode(word, add_special_tokens=False):
                    if token >= self.vocab_size:
                        raise ValueError(f"embedding_bias_words has {word!r}, and the engine's vocabulary does not")
                    bias[row, token] += weight
        return bias


def _invalid(text: str) -> Any:
    """The request's own fault; the oldest servers have no codes for errors of a model."""
    code = getattr(pb_utils.TritonError, "INVALID_ARG", None)
    return pb_utils.TritonError(text) if code is None else pb_utils.TritonError(text, code)


def _array(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _strings(request: Any, name: str) -> list[list[str]]:
    """Rows of strings; an empty list where the request has no such tensor."""
    array = _array(request, name)
    return [] if array is None else [[text_of(value) for value in row.reshape(-1)] for row in array]


def _ids(request: Any, name: str, count: int, default: int) -> Any:
    array = _array(request, name)
    if array is None:
        return np.full((count, 1), default, dtype=np.int32)
    return array.reshape(count, 1).astype(np.int32)
