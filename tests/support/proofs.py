"""What a session has proven of every architecture, as the table of docs/architectures.md."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from support.architectures import MODELS

DOCUMENT = Path(__file__).parents[2] / "docs" / "architectures.md"
BEGIN, END = "<!-- what the tests proved: begin -->", "<!-- what the tests proved: end -->"

TITLES = {
    "LlamaForCausalLM": "Llama",
    "MistralForCausalLM": "Mistral",
    "Qwen2ForCausalLM": "Qwen2",
    "Qwen3ForCausalLM": "Qwen3",
    "Qwen3MoeForCausalLM": "Qwen3-MoE",
    "Gemma2ForCausalLM": "Gemma 2",
    "Gemma3ForCausalLM": "Gemma 3",
    "Phi3ForCausalLM": "Phi-3",
    "MixtralForCausalLM": "Mixtral",
    "GPT2LMHeadModel": "GPT-2",
    "GPTNeoXForCausalLM": "GPT-NeoX",
}


class Proofs:
    """Features by architecture, noted by tests that passed, and which tests those were."""

    def __init__(self) -> None:
        self.features: dict[str, set[str]] = defaultdict(set)
        self.passed: set[tuple[str, ...]] = set()

    def note(self, test: tuple[str, ...], architecture: str, *features: str) -> None:
        self.passed.add(test)
        self.features[architecture].update(features)

    def render(self) -> str:
        """A table of features by architecture, in Markdown."""
        names = sorted({name for found in self.features.values() for name in found}, key=str.casefold)
        lines = [f"| | {' | '.join(TITLES[architecture] for architecture in MODELS)} |", "|---|" + "---|" * len(MODELS)]
        for name in names:
            cells = ["✓" if name in self.features[architecture] else "" for architecture in MODELS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)


def read_committed(document: Path = DOCUMENT) -> str:
    text = document.read_text(encoding="utf-8")
    return text.split(BEGIN)[1].split(END)[0].strip()


def write_table(table: str, document: Path = DOCUMENT) -> None:
    before, rest = document.read_text(encoding="utf-8").split(BEGIN)
    document.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}", encoding="utf-8")
