"""A stand-in for Triton's closed `tensorrtllm` backend: a python-based backend with the same parameters and tensors.

It computes nothing: an answer repeats the prompt's own tokens after the first (the BOS), from the one that `seed` says.
What it is given it checks as the real one does (names, types, shapes) and writes to the file that TRTX_STAND_IN_LOG
names.
"""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

INT32, INT64, FP32, BOOL = np.int32, np.uint64, np.float32, np.bool_
# Type and number of dimensions, the batch's included, of what a test may send.
KNOWN = {
    **dict.fromkeys(("input_ids", "embedding_bias"), (INT32, 2)),
    **dict.fromkeys(("stop_words_list", "bad_words_list"), (INT32, 3)),
    **dict.fromkeys(
        [
            "input_lengths",
            "request_output_len",
            "end_id",
            "pad_id",
            "beam_width",
            "runtime_top_k",
            "min_tokens",
            "min_length",
        ],
        (INT32, 1),
    ),
    **dict.fromkeys(["temperature", "runtime_top_p", "len_penalty", "repetition_penalty"], (FP32, 1)),
    **dict.fromkeys(["streaming", "stop", "return_log_probs", "exclude_input_in_output"], (BOOL, 1)),
    **dict.fromkeys(("seed", "random_seed"), (INT64, 1)),
    "embedding_bias": (FP32, 2),
}


class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        values = {name: item["string_value"] for name, item in self.config["parameters"].items()}
        for name, value in values.items():
            if "${" in value:
                raise pb_utils.TritonModelException(f"{name} is {value}")
        if values["gpt_model_type"] not in ("V1", "inflight_batching", "inflight_fused_batching"):
            raise pb_utils.TritonModelException("invalid gpt_model_type")
        if not Path(values["gpt_model_path"]).is_dir():
            raise pb_utils.TritonModelException(f"{values['gpt_model_path']} does not exist")
        self.outputs = {item["name"]: item["data_type"] for item in self.config["output"]}
        self.decoupled = self.config["model_transaction_policy"]["decoupled"]
        self.stopped = set()
        self.log = os.environ.get("TRTX_STAND_IN_LOG")
        self._write({"parameters": values})

    def execute(self, requests):
        if not self.decoupled:
            return [self._answer_once(request) for request in requests]
        for request in requests:
            threading.Thread(target=self._stream, args=(request, request.get_response_sender())).start()
        return None

    def _answer_once(self, request):
        try:
            return self._response(request, self._tokens(self._read(request)))
        except ValueError as error:
            return pb_utils.InferenceResponse([], error=pb_utils.TritonError(str(error)))

    def _stream(self, request, sender):
        try:
            found = self._read(request)
            if found.get("stop", np.zeros(1))[0]:
                self.stopped.add(request.request_id())
            elif found.get("streaming", np.zeros(1))[0]:
                for token in self._each(request, self._tokens(found)):
                    sender.send(self._response(request, [token]))
            else:
                sender.send(self._response(request, list(self._each(request, self._tokens(found)))))
        except ValueError as error:
            response = pb_utils.InferenceResponse([], error=pb_utils.TritonError(str(error)))
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _each(self, request, tokens):
        """Tokens one by one; a long answer takes its time, and ends when a request of the same id says stop."""
        for count, token in enumerate(tokens):
            if request.request_id() in self.stopped:
                self._write({"stopped": request.request_id(), "after": count})
                return
            yield token
            if len(tokens) > 100:
                time.sleep(0.005)

    def _read(self, request):
        found = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        for name, value in found.items():
            dtype, dims = KNOWN[name]
            if value.dtype != dtype or value.ndim != dims:
                raise ValueError(f"{name} is {value.dtype} with {value.ndim} dimensions")
        self._write({name: value.tolist() for name, value in found.items()})
        return found

    def _tokens(self, found):
        length = int(found["input_lengths"][0])
        prompt = found["input_ids"][0, 1:length].tolist()
        if not prompt:
            raise ValueError("the stand-in cannot repeat an empty prompt")
        start = int(found.get("seed", found.get("random_seed", np.zeros(1)))[0])
        tokens = []
        for index in range(int(found["request_output_len"][0])):
            tokens.append(prompt[(start + index) % len(prompt)])
            if tokens[-1] == int(found["end_id"][0]) or self._stops(tokens, found["stop_words_list"][0]):
                break
        return tokens

    def _stops(self, tokens, words):
        begin = 0
        for end in words[1]:
            if end == -1:
                break
            if tokens[-(end - begin) :] == words[0, begin:end].tolist():
                return True
            begin = end
        return False

    def _response(self, request, tokens):
        made = {
            "output_ids": np.array([[tokens]], dtype=np.int32),
            "sequence_length": np.array([[len(tokens)]], dtype=np.int32),
        }
        tensors = []
        for name in request.requested_output_names():
            dtype = pb_utils.triton_string_to_numpy(self.outputs[name])
            shape = (1, 1) if name in ("batch_index", "sequence_index", "cum_log_probs") else (1, 1, 1)
            if name in ("generation_logits",):
                shape = (1, 1, 1, 1)
            if name.endswith(("_ns", "_blocks", "_tokens", "_rate")):
                shape = (1, 1)
            tensors.append(pb_utils.Tensor(name, made.get(name, np.zeros(shape, dtype=dtype))))
        return pb_utils.InferenceResponse(tensors)

    def _write(self, item):
        if self.log:
            with Path(self.log).open("a") as stream:
                stream.write(json.dumps(item) + "\n")
