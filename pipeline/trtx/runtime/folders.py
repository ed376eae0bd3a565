"""Where the parts of an engine lie. Imports no torch.

A ready engine folder holds all: engine.json, programs/, weights/, tokenizer/. The outputs of build and convert can be
joined without copying: engine.json and programs/ in one folder, the weights and tokenizer/ in another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trtx.errors import UsageProblem, VerificationFailed
from trtx.models.weights_config import TOKENIZER_FOLDER, load_weights_config
from trtx.runtime.card import CARD_NAME, EngineCard

WEIGHTS_FOLDER = "weights"
# Where a deployment folder keeps its engine.
ENGINE_FOLDER = "engine"
# What a deployment folder says of itself, the name it is served under among it.
DEPLOYMENT_NAME = "deployment.json"


@dataclass(frozen=True)
class EngineFolders:
    """The folder of card and programs, of one set of weights, and of the tokenizer."""

    engine: Path
    weights: Path
    tokenizer: Path

    def weights_bytes(self, card: EngineCard) -> int:
        """Size of the weight file of the card's rank. Raises VerificationFailed when there is none."""
        ranks = load_weights_config(self.weights).ranks
        path = self.weights / ranks[min(card.rank.rank, len(ranks) - 1)].file
        if not path.is_file():
            raise VerificationFailed(
                f"{path} is missing", why="config.json beside it names it", fix="convert the checkpoint again"
            )
        return path.stat().st_size


def find_folders(folder: Path, weights: Path | None = None) -> EngineFolders:
    """The parts of an engine folder, or of a deployment folder with an engine inside; `weights` may lie elsewhere.

    Raises UsageProblem when a part is missing.
    """
    engine = folder if (folder / CARD_NAME).is_file() else folder / ENGINE_FOLDER
    if not (engine / CARD_NAME).is_file():
        exists = folder.is_dir()
        raise UsageProblem(
            f"{folder} is not an engine folder" if exists else f"there is no folder {folder}",
            why=f"neither {CARD_NAME} nor {ENGINE_FOLDER}/{CARD_NAME} is in it" if exists else "",
            fix="give the package folder that `trtx apply` printed, or the engine folder inside it",
        )
    weights = weights or engine / WEIGHTS_FOLDER
    if not weights.is_dir():
        raise UsageProblem(
            f"{engine} has no weights",
            why=f"there is no folder {weights}; a build holds programs only",
            fix="give the package folder that `trtx apply` printed: it joins programs and weights",
        )
    beside = engine / TOKENIZER_FOLDER
    return EngineFolders(engine, weights, beside if beside.is_dir() else weights / TOKENIZER_FOLDER)
