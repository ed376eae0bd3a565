"""A loopback hub, and the files of a model no one could load but every source can carry."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.hub import Hub, serve_hub

from trtx.models.demo.config import DemoConfig, make_hf_config

MODEL_FILES = {
    "config.json": json.dumps(make_hf_config(DemoConfig())).encode(),
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": bytes(range(256)) * 100,
}
# What a repository also holds and nobody needs.
OTHER_FILES = {
    "README.md": b"# A model",
    "pytorch_model.bin": b"pickle",
    "model.gguf": b"GGUF",
    "onnx/model.onnx": b"onnx",
    "original/consolidated.00.pth": b"pth",
    ".gitattributes": b"",
}


@pytest.fixture(scope="session")
def running_hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub: Hub) -> Hub:
    """The running hub, emptied."""
    running_hub.reset()
    return running_hub
