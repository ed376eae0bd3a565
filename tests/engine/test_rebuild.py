"""Compiled engines against rebuilds that are right, harmlessly other, and wrong."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Built
from trtx.backends.inductor.build import build
from trtx.backends.inductor.check import PROMPT_TOKENS
from trtx.backends.inductor.choices import CHOICES_NAME
from trtx.backends.inductor.evidence import CHECK_NAME
from trtx.backends.inductor.rebuild import compare
from trtx.backends.inductor.spec import EngineSpec
from trtx.backends.rebuilt import Comparison
from trtx.errors import VerificationFailed
from trtx.files import read_json, sha256_file, write_json
from trtx.runtime.card import CARD_NAME

Edit = Callable[[Path], None]


def compare_with(built: Built, rebuilt: Path, work: Path) -> Comparison:
    inputs = {"model": built.model, "checkpoint": built.checkpoint, "weights": built.weights}
    return compare(built.engine, rebuilt, inputs, work)


def alter(engine: Path, folder: Path, edit: Edit) -> Path:
    """A copy of an engine that was edited."""
    shutil.copytree(engine, folder)
    edit(folder)
    return folder


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    value = read_json(path)
    change(value)
    write_json(path, value)


def add_to_program(engine: Path) -> None:
    """Other bytes of the same program."""
    path = engine / "programs" / "step.pt2"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("step/note", "nobody reads this")
    edit_json(engine / CARD_NAME, lambda card: card["programs"]["step"].update(sha256=sha256_file(path)))


def choose_otherwise(engine: Path) -> None:
    edit_json(engine / CHOICES_NAME, lambda choices: choices["programs"]["step"].update(kernels=99))


def record_otherwise(engine: Path) -> None:
    edit_json(engine / CARD_NAME, lambda card: card.update(products=["bf16 16 4096 1024 00ff"]))


def measure_otherwise(engine: Path) -> None:
    """What is no choice: the evidence of another check, and times."""
    edit_json(engine / CHECK_NAME, lambda check: check.update(weights_key="other"))
    (engine / "products.json").write_text("[]")


@pytest.mark.parametrize(
    ("edit", "verdict", "different"),
    [
        (measure_otherwise, "bit-identical", ((), (), ())),
        (add_to_program, "same choices", ((CARD_NAME, "programs/step.pt2"), (), ())),
        (choose_otherwise, "equal within a bound", ((CHOICES_NAME,), ("programs.step.kernels",), ())),
        (record_otherwise, "equal within a bound", ((CARD_NAME,), (), ("bf16 16 4096 1024",))),
    ],
)
def test_what_differs_decides_between_the_good_verdicts(
    plain: Built, edit: Edit, verdict: str, different: tuple[tuple[str, ...], ...], tmp_path: Path
) -> None:
    found = compare_with(plain, alter(plain.engine, tmp_path / "rebuilt", edit), tmp_path / "work")
    assert found.verdict == verdict
    assert found.choices is not None and found.records is not None and found.outputs is not None
    parts = (found.files, found.choices, found.records)
    assert tuple(tuple(text.partition(":")[0] for text in part.different) for part in parts) == different
    # The same machine code over the same weights: not only close.
    assert (found.outputs.largest, found.outputs.distance, found.outputs.mismatches) == (0.0, 0.0, 0)
    assert (found.outputs.sequences, found.outputs.tokens) == (4, 2 * PROMPT_TOKENS)


def test_an_engine_that_computes_something_else_differs_and_the_deviation_is_told(plain: Built, tmp_path: Path) -> None:
    """As if the compiler had a fault: norms are others, and the card says nothing of it."""
    spec = EngineSpec.model_validate(plain.params.model_dump())
    model = spec.model.model_copy(update={"norm_epsilon": 1.0})
    other, work = tmp_path / "other", tmp_path / "build"
    for folder in (other, work):
        folder.mkdir()
    build(spec.model_copy(update={"model": model}), other, work, lambda _: None)
    card = read_json(plain.engine / CARD_NAME)
    claims = {name: card[name] for name in ("model", "weights_layout_sha256")}
    edit_json(other / CARD_NAME, lambda card: card.update(claims))
    found = compare_with(plain, other, tmp_path / "work")
    assert found.outputs is not None
    assert found.outputs.distance > found.outputs.bound
    assert found.outputs.largest > 0
    assert found.verdict == "differs"


def test_an_engine_that_cannot_be_asked_is_an_error_and_no_verdict(plain: Built, tmp_path: Path) -> None:
    def damage(engine: Path) -> None:
        (engine / "programs" / "step.pt2").write_bytes(b"no program")

    damaged = alter(plain.engine, tmp_path / "damaged", damage)
    with pytest.raises(VerificationFailed, match="is not the one its card names"):
        compare_with(plain, damaged, tmp_path / "work")


def test_choices_that_cannot_be_read_are_an_error(plain: Built, tmp_path: Path) -> None:
    cut = alter(plain.engine, tmp_path / "cut", lambda engine: (engine / CHOICES_NAME).unlink())
    with pytest.raises(VerificationFailed, match=r"compile\.json cannot be read"):
        compare_with(plain, cut, tmp_path / "work")


def test_rounded_weights_and_caches_are_compared_with_the_bound_of_their_format(
    plain: Built, fp8: Built, tmp_path: Path
) -> None:
    bounds = []
    for built in (plain, fp8):
        copied = alter(built.engine, tmp_path / built.params.quantization.algorithm, add_to_program)
        found = compare_with(built, copied, tmp_path / f"work-{built.params.quantization.algorithm}")
        assert found.verdict == "same choices" and found.outputs is not None
        bounds.append(found.outputs.bound)
        evidence = json.loads((built.engine / CHECK_NAME).read_bytes())
        assert found.outputs.bound == evidence["tolerances"]["compiled_vs_eager"]
    assert bounds[0] < bounds[1]
