"""Which tasks are submitted together, and what they wait for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trtx.runners.slurm.dependencies import Awaited, make_dependency
from trtx.runners.slurm.folder import Round, SubmissionFolder
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
    ) -> None:
        self._folder, self._options, self._timing, self._workspace = folder, options, timing, workspace
        self._tasks = tasks
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
            indices = sorted(item.task.index for item in items)
            made = self._folder.add_round(
                items[0].group, indices, resources, self._options, self._timing, others, self._workspace.place
            )
            self._by_group[name].append(made)
            for item in items:
                item.enter(made)

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
        needs = [need for task in members for need in self._awaited(task)]
        if any(not need.job for need in needs):
            return
        rounds = {need.token: need.round for need in needs if need.round}
        awaited = [
            Awaited(waited.job, waited.indices, {n.task.step: n.task.index for n in needs if n.token == token})
            for token, waited in rounds.items()
        ]
        dependency = make_dependency([task.task for task in members], awaited)
        comment = f"trtx run={self._folder.token} group={item.group} round={item.number} token={item.token}"
        self._workspace.push()
        self.submitter.submit(members[0].group, item, dependency, comment)
