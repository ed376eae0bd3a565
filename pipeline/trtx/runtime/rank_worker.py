"""The process of one rank other than 0: `python -m trtx.runtime.rank_worker JOB`, JOB being a RankJob in JSON.

It loads its share, meets the other ranks and then runs every step that rank 0 runs. It ends when rank 0 does, however
that happens, and leaves at once when it is told nothing any more.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from trtx.errors import TrtxError
from trtx.hardware.host import count_cpus
from trtx.runtime.card import EngineCard, load_card
from trtx.runtime.program import Programs
from trtx.runtime.rank_job import Command, Failed, JoinRanks, RankJob, RunStep, SubmitStep, find_loader
from trtx.runtime.ranks import ProcessRanks
from trtx.runtime.threads import choose_num_threads

# How often a process looks whether the one that started it is still there.
LOOK_S = 1.0
# How long a rank that fails stays, so that one whose end it only hears of is seen before.
SETTLE_S = 1.0
# Steps of a device that may be under way.
MAX_PENDING = 2


class RankProcess:
    """Obeys the commands of rank 0, in order. One thread receives them, so that it can end the process at any time."""

    def __init__(self, job: RankJob) -> None:
        self._job = job
        self._connection: Connection[Any, Any] = Connection(job.connection)
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        threading.Thread(target=self._receive, name="commands", daemon=True).start()

    def run(self) -> None:
        """Load, meet the others, and run steps until the process ends."""
        programs = self._load()
        self._connection.send("ready")
        pending: deque[Any] = deque()
        while True:
            match self._commands.get():
                case RunStep(inputs):
                    programs.step(*map(torch.from_numpy, inputs))
                case SubmitStep() as command:
                    if len(pending) == MAX_PENDING:
                        pending.popleft().tokens()
                    pending.append(submit(programs, command))

    def tell(self, failed: Failed) -> None:
        """Say why the process ends."""
        self._connection.send(failed)

    def _load(self) -> Programs:
        job = self._job
        engine, weights = Path(job.engine), Path(job.weights)
        card = load_card(engine).for_rank(job.rank)
        set_threads(card, weights)
        return find_loader(job.loader)(engine, weights, card, job.num_blocks, lambda: self._join(card))

    def _join(self, card: EngineCard) -> ProcessRanks:
        self._connection.send("loaded")
        command = self._commands.get()
        if not isinstance(command, JoinRanks):
            raise RuntimeError(f"rank 0 sent {type(command).__name__} before the ranks had met")
        return ProcessRanks(card.compiled_for.device, Path(self._job.folder), self._job.rank, card.rank.tensor)

    def _receive(self) -> None:
        try:
            while True:
                # A process that rank 0 forked may keep the connection open after it.
                while not self._connection.poll(LOOK_S):
                    if os.getppid() != self._job.parent:
                        raise EOFError
                self._commands.put(self._connection.recv())
        except (EOFError, OSError):
            # Rank 0 may have had no time to tidy up. Whatever the other threads wait for will not come.
            shutil.rmtree(self._job.folder, ignore_errors=True)
            os._exit(0)


def submit(programs: Any, command: SubmitStep) -> Any:
    """Start a step on a device; returns what is pending."""
    from trtx.runtime.cuda_ranks import DRAWN_ELSEWHERE

    return programs.submit(command.inputs, command.sources, DRAWN_ELSEWHERE if command.is_drawn else None)


def set_threads(card: EngineCard, weights: Path) -> None:
    """Share the processors among the ranks; a rank on a GPU is left as it is."""
    if card.compiled_for.device == "cpu":
        cpus = min(torch.get_num_threads(), count_cpus(Path("/proc"), Path("/sys/fs/cgroup")))
        size = sum(path.stat().st_size for path in weights.glob(f"rank{card.rank.rank}.*"))
        torch.set_num_threads(choose_num_threads(size, max(1, cpus // card.rank.tensor)))


def main(arguments: list[str]) -> int:
    """Run the rank of the one argument; an error with a known cause is told to rank 0."""
    # A signal to all of a terminal's or a job's processes is rank 0's business: it may want to finish its requests.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    process = RankProcess(RankJob.model_validate_json(arguments[0]))
    try:
        process.run()
    except TrtxError as error:
        process.tell(Failed(type(error).__name__, error.what, error.why, error.fix))
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is, its words are the last of this process
        traceback.print_exc()
        print(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", flush=True)
        # Another rank may be the reason: it is to be seen first.
        time.sleep(SETTLE_S)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
