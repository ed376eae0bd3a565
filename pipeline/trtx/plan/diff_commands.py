"""What two recipes say differently to the tools of TensorRT-LLM: options of command lines, keys of options files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtx.errors import UsageProblem
from trtx.plan.check_tensorrt_llm import make_subject, spec_of
from trtx.plan.releases import is_tensorrt
from trtx.plan.resolve import PinnedSources
from trtx.recipe.cells import Cell

if TYPE_CHECKING:
    from trtx.backends.tensorrt_llm.rehearse import Rehearsed


@dataclass(frozen=True)
class CommandChange:
    """What the tool of a stage is told otherwise: `old` and `new` are options, each a flag with its values, that only
    one side has."""

    stage: str
    tool: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    cells: tuple[str, ...]


def compare_commands(
    old: tuple[Sequence[Cell], PinnedSources], new: tuple[Sequence[Cell], PinnedSources]
) -> tuple[CommandChange, ...]:
    """The changes of all cells that both sides have; what several cells share is told once."""
    before, after = ({cell.name: (cell, sources) for cell in cells} for cells, sources in (old, new))
    found: dict[tuple[str, str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for name in before.keys() & after.keys():
        first, second = _rehearse(*before[name]), _rehearse(*after[name])
        for key in dict.fromkeys((*first, *second)):
            gone, added = _options(first.get(key)), _options(second.get(key))
            change = (tuple(one for one in gone if one not in added), tuple(one for one in added if one not in gone))
            if any(change):
                found.setdefault((*key, *change), []).append(name)
    return tuple(CommandChange(*change, tuple(sorted(names))) for change, names in found.items())


def _rehearse(cell: Cell, sources: PinnedSources) -> Mapping[tuple[str, str], Rehearsed]:
    """What each stage of a cell says to its tool, by both; nothing for the embedded backend."""
    from trtx.backends.tensorrt_llm.rehearse import rehearse

    if not is_tensorrt(cell):
        return {}
    pinned, config = sources.release_of(cell), sources.model_of(cell).source.config
    try:
        spec = spec_of(cell, make_subject(cell, pinned, config), pinned, config, None)
        return {(command.stage, command.tool): command for command in rehearse(spec, pinned.release)}
    except UsageProblem:  # A plan would be refused; there is nothing to compare.
        return {}


def _options(command: Rehearsed | None) -> tuple[str, ...]:
    """A command line as options, each flag with its values; the lines of a file as they are."""
    if command is None:
        return ()
    return tuple(command.words) if command.tool.endswith("file") else tuple(_group(command.words))


def _group(words: Sequence[str]) -> Iterator[str]:
    current: list[str] = []
    for word in words:
        if word.startswith("--") and current:
            yield " ".join(current)
            current = []
        current.append(word)
    if current:
        yield " ".join(current)
