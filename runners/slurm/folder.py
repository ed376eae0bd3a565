"""All state of a submission, as files: whoever reads them can go on where a driver died.

    <folder>/submission.json                       schema, and the token of the whole
    <folder>/groups/<group>/group.json             the tasks, what they need, what they get
    <folder>/groups/<group>/news/<index>.<claim>.… names left by tasks that start and end
    <folder>/groups/<group>/rounds/<n>/tasks.json  one sbatch: its token, its tasks; written before it is called
    <folder>/groups/<group>/rounds/<n>/job.sh      the script
    <folder>/groups/<group>/rounds/<n>/try-<k>     sbatch was about to be called for the k-th time
    <folder>/groups/<group>/rounds/<n>/submitted.json  the job id, and how it became known

Files are created whole and never changed, so two drivers at once cannot disagree on what they say.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trtx.errors import UsageProblem
from trtx.files import canonical_json, write_text
from trtx.runners.slurm.attempts import create_once, read_file
from trtx.runners.slurm.groups import Group, SlurmTask, group_from_json, group_to_json, resources_from_json
from trtx.runners.slurm.options import Resources, SlurmOptions, Timing
from trtx.runners.slurm.script import SCRIPT_NAME, TASKS_NAME, find_root, make_launch, make_script

SCHEMA = "trtx.slurm/v1"


@dataclass
class Round:
    """One sbatch of some tasks of a group. `job` is empty until its id is known; `tries` counts calls of sbatch."""

    group: str
    number: int
    folder: Path
    token: str
    indices: tuple[int, ...]
    resources: Resources
    # Taken from the tasks' indices where they are those of the array: a group may be larger than an array can be.
    offset: int = 0
    job: str = ""
    tries: int = 0
    complaint: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The job's name: the group for people, the token for looking it up."""
        return f"{self.group}-{self.token}"

    @property
    def array_indices(self) -> tuple[int, ...]:
        return tuple(index - self.offset for index in self.indices)

    @property
    def script(self) -> Path:
        return self.folder / SCRIPT_NAME

    def note_try(self) -> None:
        """Called before sbatch is: whoever finds this without a job id has to look the token up."""
        self.tries += 1
        create_once(self.folder / f"try-{self.tries}", b"")

    def note_job(self, job: str, how: str) -> None:
        """Called when the job id is known; of two that know different ones, the first counts."""
        document = {"job": job, "how": how}
        if not create_once(self.folder / "submitted.json", canonical_json(document)):
            document = read_file(self.folder / "submitted.json") or document
        self.job = document["job"]


@dataclass(frozen=True)
class SubmissionFolder:
    """The files of one submission."""

    path: Path

    def prepare(self) -> None:
        create_once(self.path / "submission.json", canonical_json({"schema": SCHEMA, "token": secrets.token_hex(8)}))

    @property
    def token(self) -> str:
        """Names this submission. Raises UsageProblem when the folder holds none of this version."""
        document = read_file(self.path / "submission.json") or {}
        if document.get("schema") != SCHEMA:
            raise UsageProblem(f"{self.path} holds no submission to Slurm of this version of trtx")
        return str(document["token"])

    def group_folder(self, name: str) -> Path:
        return self.path / "groups" / name

    def add_group(self, group: Group, number: int) -> None:
        """Write down a group; one that stands there already is left as it is."""
        folder = self.group_folder(group.name)
        (folder / "news").mkdir(parents=True, exist_ok=True)
        create_once(folder / "group.json", canonical_json({"number": number, "group": group_to_json(group)}))

    def groups(self) -> list[Group]:
        """All groups in the order they were given."""
        documents = [read_file(path) for path in self.path.glob("groups/*/group.json")]
        found = [document for document in documents if document is not None]
        return [group_from_json(item["group"]) for item in sorted(found, key=lambda item: int(item["number"]))]

    def news(self, group: str) -> set[str]:
        """Names that tasks of a group left when they started and ended."""
        try:
            return {path.name for path in (self.group_folder(group) / "news").iterdir()}
        except OSError:
            return set()

    def rounds(self, group: str) -> list[Round]:
        """All rounds of a group in order."""
        folders = [path.parent for path in self.group_folder(group).glob(f"rounds/*/{TASKS_NAME}")]
        return [_read_round(group, folder) for folder in sorted(folders, key=lambda path: int(path.name))]

    def add_round(
        self,
        group: Group,
        indices: Sequence[int],
        resources: Resources,
        options: SlurmOptions,
        timing: Timing,
        others: Mapping[str, SlurmTask],
        place: Callable[[Path], Path],
        offset: int = 0,
    ) -> Round:
        """Write down what is about to be submitted; `others`: all tasks by step; `place`: where jobs see a folder."""
        folder = self._make_round_folder(group.name)
        root = find_root(folder, group)
        script = make_script(options, group, resources, [index - offset for index in indices], root)
        document = {
            "token": secrets.token_hex(8),
            "offset": offset,
            "resources": asdict(resources),
            "gpu": asdict(resources.gpu) if resources.gpu else None,
            "launch": make_launch(options, resources, place((folder / root).resolve())),
            "forward_term": options.container.runtime == "docker",
            "news": "../../news",
            "timing": asdict(timing),
            **_tasks_document(group, indices, folder, others),
        }
        write_text(folder / SCRIPT_NAME, script)
        create_once(folder / TASKS_NAME, canonical_json(document))
        return _read_round(group.name, folder)

    def _make_round_folder(self, group: str) -> Path:
        """The next number's folder; two drivers at once get two."""
        parent = self.group_folder(group) / "rounds"
        parent.mkdir(exist_ok=True)
        number = 1
        while True:
            try:
                (parent / str(number)).mkdir()
            except FileExistsError:
                number += 1
            else:
                return parent / str(number)

    def is_cancelled(self) -> bool:
        return (self.path / "cancelled").exists()

    def note_cancelled(self) -> None:
        create_once(self.path / "cancelled", b"")


def _tasks_document(
    group: Group, indices: Iterable[int], folder: Path, others: Mapping[str, SlurmTask]
) -> dict[str, Any]:
    """What the tasks read on their nodes. Variables that all have in common are written once.

    `behind` are the steps that those in `needs` need, directly or not.
    """

    def paths(steps: Iterable[str]) -> dict[str, str]:
        return {step: os.path.relpath(others[step].folder, folder) for step in steps if step in others}

    tasks = {index: group.task(index) for index in indices}
    first = next(iter(tasks.values())).environment
    common = {n: v for n, v in first.items() if all(task.environment.get(n) == v for task in tasks.values())}
    return {
        "environment": common,
        "tasks": {
            str(index): {
                "step": task.step,
                "folder": os.path.relpath(task.folder, folder),
                "argv": list(task.argv),
                "environment": {n: v for n, v in task.environment.items() if n not in common},
                "needs": paths(task.needs),
                "behind": paths(_steps_behind(task, others)),
            }
            for index, task in tasks.items()
        },
    }


def _steps_behind(task: SlurmTask, others: Mapping[str, SlurmTask]) -> list[str]:
    found: dict[str, None] = {}
    ahead = list(task.needs)
    while ahead:
        step = ahead.pop()
        for need in others[step].needs if step in others else ():
            if need not in found:
                found[need] = None
                ahead.append(need)
    return sorted(found)


def _read_round(group: str, folder: Path) -> Round:
    document = read_file(folder / TASKS_NAME)
    assert document is not None, folder  # noqa: S101  Created whole, never removed.
    submitted = read_file(folder / "submitted.json") or {"job": ""}
    return Round(
        group,
        int(folder.name),
        folder,
        document["token"],
        tuple(sorted(map(int, document["tasks"]))),
        resources_from_json(document["resources"]),
        document["offset"],
        job=submitted["job"],
        tries=len(list(folder.glob("try-*"))),
    )
