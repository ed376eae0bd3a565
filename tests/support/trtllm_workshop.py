"""Steps in a folder that looks like a release's container, and the tiny model that they work on."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from support.trtllm_standin_checkpoint import KV_ALGOS, Ranks, write_checkpoint
from support.trtllm_standins import StandIns

from trtx.backends.tensorrt_llm.spec import TrtllmSpec
from trtx.backends.tensorrt_llm.step import Step
from trtx.backends.tensorrt_llm.support import FORMATS
from trtx.backends.tokenizer_files import copy_tokenizer


@dataclass
class Workshop:
    """Steps one after another, each with its own folders; `log` holds what they said."""

    folder: Path
    standins: StandIns | None
    model: Path
    log: list[str] = field(default_factory=list)
    _count: int = 0

    def step(self, **inputs: Path) -> Step:
        self._count += 1
        output, work = (self.folder / f"{self._count}-{name}" for name in ("output", "work"))
        output.mkdir()
        work.mkdir()
        return Step(inputs, output, work, self.log.append, lambda *_: None, dict(os.environ))

    def rows(self, *texts: str) -> Path:
        """The output of a dataset step."""
        folder = self.folder / "rows"
        folder.mkdir()
        lines = "".join(f'{{"text": "{text}"}}\n' for text in texts)
        (folder / "calibration.jsonl").write_text(lines)
        return folder

    def checkpoint(self, spec: TrtllmSpec) -> Path:
        """What the stand-in of a converter writes for a spec, in no time."""
        folder = self.folder / f"checkpoint-{spec.ranks.tensor}-{spec.ranks.pipeline}-{spec.quantization.algorithm}"
        if not folder.exists():
            quantization = {
                "quant_algo": FORMATS[spec.quantization.algorithm].quant_algo,
                "kv_cache_quant_algo": KV_ALGOS.get(spec.quantization.kv_cache),
            }
            parts = Ranks(spec.ranks.tensor, spec.ranks.pipeline)
            write_checkpoint(self.model, folder, spec.dtype, parts, quantization)
            copy_tokenizer(self.model, folder / "tokenizer")
        return folder
