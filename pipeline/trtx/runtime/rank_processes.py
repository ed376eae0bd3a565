"""The processes of the ranks other than 0, as rank 0 sees them: started, told what to do, watched, ended with it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, cast

from trtx.errors import BY_NAME, EnvironmentProblem, TrtxError
from trtx.processes import start_process
from trtx.runtime.card import EngineCard
from trtx.runtime.memory import PoolSize
from trtx.runtime.rank_job import LOADER, Answer, Command, Failed, JoinRanks, RankJob, Stage
from trtx.runtime.ranks import ProcessRanks, rank_environment

# How long a process has to end by itself once nobody talks to it.
LEAVE_S = 10.0
# A rank that fails takes the answers of the others with it. Which of them is to blame is known a moment later.
SETTLE_S = 5.0
# Rank 0 may wait for a device that waits for a rank which is gone. If nothing else gets it out of there, it ends.
STUCK_S = 60.0
TAIL_LINES = 12


class RankProcesses:
    """Ranks 1 … n-1 of an engine. Commands may come from one thread at a time; a thread of its own watches."""

    def __init__(
        self, engine: Path, weights: Path, card: EngineCard, num_blocks: int | PoolSize, loader: str = LOADER
    ) -> None:
        self.size, self._pid = card.rank.tensor, os.getpid()
        self._device = card.compiled_for.device
        self._folder = Path(tempfile.mkdtemp(prefix="trtx-ranks-"))
        self._changed = threading.Condition()
        self._stages: dict[int, Stage] = {}
        self._failure: TrtxError | None = None
        self._listeners: list[Callable[[Exception], None]] = []
        self._group: ProcessRanks | None = None
        self._is_closed = self._is_busy = False
        self._ending = threading.Thread(target=self._abort, name="abort", daemon=True)
        self._connections: dict[Any, int] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for rank in range(1, self.size):
                self._start(engine, weights, rank, num_blocks, loader)
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def join(self) -> ProcessRanks:
        """Meet the other ranks once they have loaded. Raises the error of a rank that did not come."""
        self.wait_for("loaded")
        self.send(JoinRanks())
        with self.meeting():
            self._group = ProcessRanks(self._device, self._folder, 0, self.size)
        return self._group

    def wait_for(self, stage: Stage) -> None:
        """Wait until all ranks have come so far. Raises the error of one that failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or list(self._stages.values()).count(stage) == self.size - 1)
        self.check()

    def send(self, command: Command) -> None:
        """Tell all ranks. Raises the error of one that failed."""
        self.check()
        # Packed once for all of them.
        message = ForkingPickler.dumps(command)
        try:
            for connection in self._connections:
                connection.send_bytes(message)
        except OSError:
            raise self._settle() from None

    def when_failed(self, tell: Callable[[Exception], None]) -> None:
        """Have `tell` called with the error of the first rank that fails, or at once when one has."""
        with self._changed:
            if self._failure is None:
                self._listeners.append(tell)
                return
        tell(self._failure)

    def check(self) -> None:
        """Raise the error of a rank that failed."""
        if self._failure is not None:
            raise self._failure

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Around what waits for the other ranks: raises the error of one that failed in place of what came of it."""
        outside, self._is_busy = self._is_busy, True
        try:
            yield
        except RuntimeError as error:
            raise self._settle(error) from error
        finally:
            self._is_busy = outside
        self.check()

    def close(self) -> None:
        """End all processes and wait for them. May be called twice."""
        # A process that this one forked has its objects, too.
        if self._is_closed or os.getpid() != self._pid:
            return
        self._is_closed = True
        self._end_group()
        for connection in self._connections:
            # Not closed: the thread that watches still reads. The other side sees the end all the same.
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as both:
                both.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + LEAVE_S
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, engine: Path, weights: Path, rank: int, num_blocks: int | PoolSize, loader: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            job = RankJob(
                engine=str(engine.absolute()),
                weights=str(weights.absolute()),
                rank=rank,
                num_blocks=num_blocks,
                loader=loader,
                folder=str(self._folder),
                connection=theirs.fileno(),
                parent=os.getpid(),
            )
            connection: Connection[Any, Any] = Connection(ours.detach())
            self._connections[connection] = rank
            self._processes[rank] = start_process(
                [_find_python(), "-m", "trtx.runtime.rank_worker", job.model_dump_json()],
                folder=Path.cwd(),
                environment=rank_environment(self._device, rank, {**os.environ, **_same_modules()}),
                log=self._log(rank),
                own_group=False,
                pass_fds=[theirs.fileno()],
            )

    def _watch(self) -> None:
        open_ones = dict(self._connections)
        while open_ones and not self._is_closed:
            for connection in wait(list(open_ones)):
                rank = open_ones[connection]
                try:
                    answer: Answer = cast(Any, connection).recv()
                except (EOFError, OSError):
                    del open_ones[connection]
                    if not self._is_closed:
                        self._fail(self._describe_end(rank))
                    continue
                if isinstance(answer, Failed):
                    self._fail(self._describe(rank, answer))
                else:
                    with self._changed:
                        self._stages[rank] = answer
                        self._changed.notify_all()

    def _fail(self, failure: TrtxError) -> None:
        """Note the first failure, and end what waits for the rank: the other processes, and what this one is in."""
        with self._changed:
            if self._failure is not None:
                return
            self._failure = failure
            self._changed.notify_all()
            listeners = list(self._listeners)
        for tell in listeners:
            tell(failure)
        for process in self._processes.values():
            process.kill()
        # Now rather than at the end, which may be a signal that lets nobody tidy up. The last words are in the failure.
        shutil.rmtree(self._folder, ignore_errors=True)
        threading.Thread(target=self._free_rank_0, name="free rank 0", daemon=True).start()

    def _free_rank_0(self) -> None:
        if self._device == "cuda":
            self._start_ending()
        deadline = time.monotonic() + STUCK_S
        while self._is_busy and not self._is_closed:
            if time.monotonic() > deadline and self._failure is not None:
                print(self._failure.render(), file=sys.stderr, flush=True)
                os._exit(self._failure.exit_code)
            time.sleep(0.1)

    def _end_group(self) -> None:
        """Leave the other ranks, who are about to end: not longer than a moment, where that can be had.

        After a failure this is under way, and waits for graphs that are gone by now. It must not come back to an
        interpreter that ends: a thread in NCCL's code takes the process with it.
        """
        try:
            self._start_ending()
        except RuntimeError:  # an interpreter that ends starts no threads
            self._abort()
        else:
            self._ending.join(LEAVE_S)

    def _start_ending(self) -> None:
        """Once: a failure and the end of the engine may come at the same time."""
        with self._changed:
            if self._ending.ident is None:
                self._ending.start()

    def _abort(self) -> None:
        if self._group is not None:
            self._group.abort()

    def _settle(self, error: Exception | None = None) -> TrtxError:
        """The failure of a rank that explains an error here, or else one that quotes it."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure, SETTLE_S)
        return self._failure or EnvironmentProblem(
            f"the {self.size} ranks of the engine did not meet",
            why=str(error).splitlines()[0] if error and str(error) else "a connection is gone",
            fix="load the engine again, and report this if it stays",
        )

    def _describe(self, rank: int, failed: Failed) -> TrtxError:
        kind = BY_NAME.get(failed.kind, EnvironmentProblem)
        return kind(f"rank {rank} of {self.size}: {failed.what}", why=failed.why, fix=failed.fix)

    def _describe_end(self, rank: int) -> TrtxError:
        process = self._processes[rank]
        try:
            code = process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        log = self._log(rank)
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        words = [line for line in lines if line.strip()]
        said = f"its last words were: {words[-1].strip()}" if words else "it said nothing"
        return EnvironmentProblem(
            f"the process of rank {rank} of {self.size} ended {how}; {said}",
            why="\n".join(words[-TAIL_LINES:]) or "most often memory ran out, or somebody ended it",
            fix="load the engine again, and report this if it stays",
        )

    def _log(self, rank: int) -> Path:
        return self._folder / f"rank{rank}.log"


def _same_modules() -> dict[str, str]:
    """What has a process find the modules that this one finds."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _find_python() -> str:
    """The interpreter, also where it is part of another program, as in Triton's server."""
    is_python = Path(sys.executable or "").name.startswith("python")
    return sys.executable if is_python else str(Path(sys.exec_prefix, "bin", "python3"))
