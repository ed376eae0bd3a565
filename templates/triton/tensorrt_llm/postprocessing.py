"""Triton model: tokens of TensorRT-LLM's backend as text.

It sees one response at a time. What streams through the ensemble is therefore the text of each response's own tokens;
the model tensorrt_llm_bls is the one whose pieces join to the whole text.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokens import Tokenizer, flag, parameter


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        try:
            self.tokenizer = Tokenizer(parameter(config, "tokenizer_dir"))
        except (FileNotFoundError, ValueError) as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.skip = flag(config, "skip_special_tokens", True)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            return pb_utils.InferenceResponse([self._decode(request)])
        except Exception as problem:  # noqa: BLE001 - the batch has other requests
            return pb_utils.InferenceResponse([], error=pb_utils.TritonError(f"{type(problem).__name__}: {problem}"))

    def _decode(self, request: Any) -> Any:
        tokens = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
        lengths = pb_utils.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
        texts = [
            [self.tokenizer.decode(beam[:length], self.skip).encode() for beam, length in zip(beams, ends, strict=True)]
            for beams, ends in zip(tokens.tolist(), lengths.tolist(), strict=True)
        ]
        output = np.array(texts, dtype=np.object_).reshape(len(texts), -1)
        return pb_utils.Tensor("OUTPUT", output)
