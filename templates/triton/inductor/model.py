"""Triton model of an engine of trtx: everything is in trtx.serve.triton, which this server's Python must have."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        try:
            from trtx.serve.triton import TritonFront
        except ImportError as error:
            raise pb_utils.TritonModelException(
                f"this server's Python has no {error.name}; build the image with the Dockerfile beside the models"
            ) from error
        self.front = TritonFront.load(args, pb_utils)

    def execute(self, requests: list[Any]) -> None:
        self.front.execute(requests)

    def finalize(self) -> None:
        self.front.finalize()
