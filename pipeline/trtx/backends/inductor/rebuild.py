"""Compares an engine with a rebuild of it: bytes, choices, records, and what both answer. Imports no torch itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtx.backends.inductor.build import PRODUCTS_NAME
from trtx.backends.inductor.choices import CHOICES_NAME
from trtx.backends.inductor.evidence import CHECK_NAME, FAILURE_NAME, make_tolerances, read_failure
from trtx.backends.inductor.process import Child, run_children
from trtx.backends.inductor.replay import split_record
from trtx.backends.rebuilt import Compared, Comparison, Outputs, compare_files, compare_values, flatten
from trtx.errors import VerificationFailed
from trtx.files import read_json
from trtx.runtime.card import EngineCard, load_card

# Of these two no bytes are compared: how long products took, and the evidence of a check, which was made with the
# weights that were at hand. The records of the first are compared by the card.
MEASUREMENTS = (PRODUCTS_NAME, CHECK_NAME)


def compare(entry: Path, rebuilt: Path, inputs: Mapping[str, Path], work: Path) -> Comparison:
    """Compare two engine folders; `inputs` has the weights and the checkpoint that both are asked with.

    Raises VerificationFailed when one of them cannot be read or crashes, EnvironmentProblem when it does not fit this
    machine.
    """
    before, after = load_card(entry), load_card(rebuilt)
    return Comparison(
        files=compare_files(entry, rebuilt, MEASUREMENTS),
        choices=compare_values(_read_choices(entry), _read_choices(rebuilt)),
        records=_compare_records(before, after),
        outputs=_compare_outputs(before, entry, rebuilt, inputs, work),
    )


def _read_choices(engine: Path) -> dict[str, Any]:
    """Everything of compile.json, flat."""
    try:
        return flatten(read_json(engine / CHOICES_NAME))
    except (OSError, ValueError) as error:
        raise VerificationFailed(f"{engine / CHOICES_NAME} cannot be read", why=str(error)) from error


def _compare_records(before: EngineCard, after: EngineCard) -> Compared:
    """The algorithm of every product of GPUs; processors have none."""
    return compare_values(dict(map(split_record, before.products)), dict(map(split_record, after.products)))


def _compare_outputs(card: EngineCard, entry: Path, rebuilt: Path, inputs: Mapping[str, Path], work: Path) -> Outputs:
    """Ask both the same. The bound is what the same module may differ by when it is not compiled."""
    earlier = _ask("entry", entry, inputs, work)
    later = _ask("rebuilt", rebuilt, inputs, work, earlier)
    from safetensors.torch import load_file

    from trtx.backends.inductor.answers import compare_answers

    return compare_answers(load_file(earlier), load_file(later), make_tolerances(card)["compiled_vs_eager"])


def _ask(name: str, engine: Path, inputs: Mapping[str, Path], work: Path, earlier: Path | None = None) -> Path:
    folder = work / name
    folder.mkdir(parents=True)
    result, log = folder / "answers.safetensors", folder / "answers.log"
    paths = [engine, inputs["weights"], inputs["checkpoint"], result, *([earlier] if earlier else [])]
    arguments = tuple(str(path.absolute()) for path in paths)
    child = Child("trtx.backends.inductor.answers", arguments, log, {"OMP_WAIT_POLICY": "PASSIVE"})
    ended = run_children([child], folder)[0]
    if ended.code != 0:
        raise read_failure(folder / FAILURE_NAME, ended.code, ended.tail)
    return result
