"""Whether what was made is still what it was, and whether it runs here: deployments and engines of every backend.

Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trtx.backends.package_sums import SUMS_NAME, find_damage
from trtx.backends.tensorrt_llm import verify as trtllm
from trtx.errors import EnvironmentProblem, TrtxError, UsageProblem, VerificationFailed
from trtx.files import sha256_file
from trtx.runtime.card import CARD_NAME, EngineCard, load_card
from trtx.runtime.fit import check_machine
from trtx.runtime.folders import DEPLOYMENT_NAME, ENGINE_FOLDER


@dataclass(frozen=True)
class Verdict:
    """What was found. `damage` are files that are not what they were, `misfits` reasons why it does not run here.

    `made_for` is one line for people; `files` whether there were digests to compare with.
    """

    folder: str
    kind: str
    backend: str
    made_for: str
    files: bool
    damage: tuple[str, ...]
    misfits: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        return not self.damage and not self.misfits


def verify_folder(
    folder: Path, *, files_only: bool = False, strict_gpu: bool = False, environ: Mapping[str, str] | None = None
) -> Verdict:
    """Look at a deployment folder or an engine folder.

    Raises UsageProblem for a folder that is neither.
    """
    is_package = (folder / DEPLOYMENT_NAME).is_file()
    engine = folder / ENGINE_FOLDER if is_package else folder
    summed = is_package and (folder / SUMS_NAME).is_file()
    damage = list(find_damage(folder)) if summed else []
    if is_package and not summed:
        damage.append(f"{SUMS_NAME} is missing")
    kind = "deployment" if is_package else "engine"
    if (engine / CARD_NAME).is_file():
        card = load_card(engine)
        damage += [] if summed else _inductor_damage(engine, card)
        misfits = () if files_only else _inductor_misfits(card)
        return Verdict(str(folder), kind, "inductor", card.compiled_for.arch, True, tuple(damage), misfits)
    if not trtllm.is_engine(engine):
        raise _neither(folder)
    try:
        found = trtllm.read_engine(engine)
    except VerificationFailed as error:
        return Verdict(str(folder), kind, "tensorrt-llm", "", summed, (*damage, f"{error.what}: {error.why}"), ())
    damage += trtllm.find_faults(engine, found)
    misfits = () if files_only else _trtllm_misfits(found, os.environ if environ is None else environ, strict_gpu)
    made_for = f"TensorRT-LLM {found.release}, {found.world_size} rank(s)"
    if found.card is not None and found.card.compute_capability is not None:
        made_for += f", compute capability {found.card.compute_capability}"
    return Verdict(str(folder), kind, "tensorrt-llm", made_for, summed, tuple(damage), misfits)


def _neither(folder: Path) -> UsageProblem:
    why = f"neither {DEPLOYMENT_NAME}, {CARD_NAME} nor config.json of trtllm-build is in it" if folder.is_dir() else ""
    return UsageProblem(
        f"{folder} is neither a deployment nor an engine" if folder.is_dir() else f"there is no folder {folder}",
        why=why,
        fix="give the package folder that `trtx apply` printed, or the engine folder inside it",
    )


def _inductor_damage(engine: Path, card: EngineCard) -> list[str]:
    """Programs and kernels against the digests of the card."""
    problems = []
    for code in card.code.values():
        path = engine / code.path
        if not path.is_file():
            problems.append(f"{code.path} is missing")
        elif sha256_file(path) != code.sha256:
            problems.append(f"{code.path} has other bytes")
    return problems


def _inductor_misfits(card: EngineCard) -> tuple[str, ...]:
    try:
        check_machine(card)
    except EnvironmentProblem as problem:
        return (problem.what,)
    return ()


def _trtllm_misfits(found: trtllm.Found, environ: Mapping[str, str], strict: bool) -> tuple[str, ...]:
    from trtx.backends.tensorrt_llm.machine import read_installed

    try:
        here = read_installed(environ)
    except TrtxError as problem:
        return (problem.what,)
    return tuple(trtllm.find_misfits(found, here, strict=strict))
