"""How a Triton repository of TensorRT-LLM serves."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TritonServing(BaseModel):
    """How a repository serves. Folders are as the container sees them.

    `engine_dir` is the engine's folder, or the checkpoint's in the PyTorch flow. The tokenizer is in there, too, unless
    `tokenizer_dir` says otherwise. `streaming` makes answers come token
    by token where a request asks for it; then clients use `generate`, `generate_stream` or gRPC streams, not `infer`.
    At most `max_queue_size` requests wait in the server's batcher (0: no limit), each at most `max_queue_delay_us` for
    others to join it. `tokenizer_instances` and `bls_instances` are processes of the Python models.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine_dir: str = "/opt/trtx/engine"
    tokenizer_dir: str | None = None
    streaming: bool = True
    accumulate_tokens: bool = False
    max_queue_delay_us: int = Field(default=0, ge=0)
    max_queue_size: int = Field(default=0, ge=0)
    tokenizer_instances: int = Field(default=1, ge=1)
    bls_instances: int = Field(default=1, ge=1)

    @property
    def tokenizer(self) -> str:
        """The folder of the tokenizer."""
        return self.tokenizer_dir or self.engine_dir
