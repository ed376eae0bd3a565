"""The tokenizer that travels with an engine. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from trtx.files import link_or_copy, read_json

# What a server needs to turn text into tokens and back, and to know when a model stops.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def copy_tokenizer(checkpoint: Path, output: Path) -> None:
    """Copy the tokenizer's files; those that are there.

    transformers 5 names its fast tokenizers "TokenizersBackend", which transformers 4 cannot load; both load
    "PreTrainedTokenizerFast".
    """
    output.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        source = checkpoint / name
        if not source.is_file():
            continue
        if name == "tokenizer_config.json":
            facts = read_json(source)
            if facts.get("tokenizer_class") == "TokenizersBackend":
                facts["tokenizer_class"] = "PreTrainedTokenizerFast"
            (output / name).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        else:
            link_or_copy(source, output / name)
