"""Which tasks are submitted together, and what they wait for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from trtx.runners.slurm.dependencies import Awaited, make_dependency
from trtx.runners.slurm.folder import Round, SubmissionFolder
from trtx.runners.slurm.groups import split_indices
from trtx.runners.slurm.options import Resources, SlurmOptions, Timing
from trtx.runners.slurm.retries import next_resources
from trtx.runners.slurm.submit import Submitter
from trtx.runners.slurm.tracked import Tracked
from trtx.runners.slurm.workspace import Workspace


class Rounds:
    """All rounds of a submission; `tasks` by step are the runner's own, and change under it."""

    def __init__(
        self,
        folder: SubmissionFolder,
        options: SlurmOptions,
        timing: Timing,
        workspace: Workspace,
        submitter: Submitter,
        tasks: Mapping[str, Tracked],
        max_array: int | None = None,
    ) -> None:
        self._folder, self._options, self._timing, self._workspace = folder, options, timing, workspace
        self._tasks, self._max_array = tasks, max_array
        self._by_group: dict[str, list[Round]] = {}
        self.submitter = submitter

    def load(self, group: str) -> list[Round]:
        """The rounds of a group, read once."""
        if group not in self._by_group:
            self._by_group[group] = self._folder.rounds(group)
        return self._by_group[group]

    def all(self) -> list[Round]:
        """All rounds in the order of groups."""
        return [item for rounds in self._by_group.values() for item in rounds]

    def open(self) -> list[Round]:
        """Rounds in which a task has not ended."""
        tokens = {item.token for item in self._tasks.values() if item.outcome is None and not item.revoked}
        return [item for item in self.all() if item.token in tokens]

    def members(self, item: Round) -> list[Tracked]:
        """The tasks whose latest round it is."""
        return [task for task in self._tasks.values() if task.token == item.token]

    def add(self) -> None:
        """Write down a round for all tasks that need one, together where they need the same."""
        batches: dict[tuple[str, Resources, tuple[str, ...]], list[Tracked]] = {}
        wanting = [item for item in self._tasks.values() if item.needs_round]
        for name in {item.group.name for item in wanting}:
            self._enter_rounds_of_others(name, wanting)
        for item in wanting:
            if item.needs_round:
                resources = next_resources(item.group.resources, item.history.claims)
                waits = tuple(sorted({need.token for need in self._awaited(item)}))
                batches.setdefault((item.group.name, resources, waits), []).append(item)
        others = {item.task.step: item.task for item in self._tasks.values()}
        for (name, resources, _), items in batches.items():
            by_index = {item.task.index: item for item in items}
            for offset, indices in split_indices(by_index, self._max_array):
                group, place = items[0].group, self._workspace.place
                made = self._folder.add_round(
                    group, indices, resources, self._options, self._timing, others, place, offset
                )
                self._by_group[name].append(made)
                for index in indices:
                    by_index[index].enter(made)

    def _enter_rounds_of_others(self, name: str, wanting: Sequence[Tracked]) -> None:
        """See rounds that another driver of this submission has written down meanwhile."""
        known = {item.token for item in self._by_group[name]}
        for made in self._folder.rounds(name):
            if made.token not in known:
                self._by_group[name].append(made)
                for item in wanting:
                    if item.group.name == name and item.task.index in made.indices:
                        item.enter(made)

    def _awaited(self, item: Tracked) -> list[Tracked]:
        """Tasks it needs that have not ended."""
        needs = [self._tasks[step] for step in item.task.needs if step in self._tasks]
        return [need for need in needs if need.outcome is None]

    def submit(self, item: Round) -> None:
        """Submit a round once all that its tasks wait for is submitted. Raises what Submitter.submit does."""
        members = self.members(item)
        before = self._part_before(item) if members[0].group.throttle else None
        if before is not None and not before.job:
            return
        needs = [need for task in members for need in self._awaited(task)]
        if any(not need.job for need in needs):
            return
        rounds = {need.token: need.round for need in needs if need.round}
        awaited = [
            Awaited(waited.job, waited.array_indices, {n.task.step: n.array_index for n in needs if n.token == token})
            for token, waited in rounds.items()
        ]
        tasks = [replace(task.task, index=task.array_index) for task in members]
        dependency = make_dependency(tasks, awaited, after=before.job if before else "")
        comment = f"trtx run={self._folder.token} group={item.group} round={item.number} token={item.token}"
        self._workspace.push()
        others = any(part.job for part in self.open())
        self.submitter.submit(members[0].group, item, dependency, comment, others=others)

    def _part_before(self, item: Round) -> Round | None:
        """The part of a group that a throttled one comes after: Slurm throttles each array alone."""
        open_ones = {task.token for task in self._tasks.values() if task.outcome is None and not task.revoked}
        earlier = [part for part in self.load(item.group) if part.offset < item.offset and part.token in open_ones]
        return max(earlier, key=lambda part: part.offset, default=None)
