"""How a job array waits for others, in sbatch's words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trtx.runners.slurm.groups import SlurmTask

# More job ids than this in one dependency are replaced by the whole array's.
MAX_IDS = 32


@dataclass(frozen=True)
class Awaited:
    """A submitted array that has not ended: its job id, all its indices, and which step each index is."""

    job: str
    indices: tuple[int, ...]
    steps: Mapping[str, int]


def make_dependency(tasks: Iterable[SlurmTask], awaited: Sequence[Awaited], after: str = "") -> str:
    """The value of `sbatch --dependency` for an array of `tasks`, empty when none of their needs is awaited.

    Indices are those of arrays. `after` is a job that has to end first, however it ends.

    For each array, the strongest way to wait that stops no task because of one it does not need:

    - `aftercorr` where every task needs exactly the task of its own index;
    - `afterok` where all need the same tasks: those alone, or the whole array;
    - `afterany` else: they start when the array has ended, and a task whose input is missing says so at once.
    """
    tasks = list(tasks)
    words = [f"afterany:{after}"] if after else []
    for array in awaited:
        needed = {task.index: {array.steps[step] for step in task.needs if step in array.steps} for task in tasks}
        sets = list(needed.values())
        if not any(sets):
            continue
        same = all(indices == sets[0] for indices in sets)
        if all(indices == {index} for index, indices in needed.items()):
            words.append(f"aftercorr:{array.job}")
        elif same and sets[0] == set(array.indices):
            words.append(f"afterok:{array.job}")
        elif same and len(sets[0]) <= MAX_IDS:
            words.append("afterok:" + ":".join(f"{array.job}_{index}" for index in sorted(sets[0])))
        else:
            words.append(f"afterany:{array.job}")
    return ",".join(words)
