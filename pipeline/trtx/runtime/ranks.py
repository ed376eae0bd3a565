"""Groups of the ranks of one engine: processes over torch.distributed, or threads of one process.

Groups are made for one engine each and stand beside whatever else a process uses torch.distributed for: none of its
process-wide state is touched, nothing listens beyond this machine, and the ranks find one another by a private file.

Legend: R ranks of a group.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C import _distributed_c10d as c10d

from trtx.kernels.collectives import Group, use_group
from trtx.runtime.card import Device

# How long a rank waits for the others in one operation, and for all of them to meet at first.
TIMEOUT_S = 300.0
STORE_NAME = "store"

NCCL_DEFAULTS = {
    # NVLink multicast needs rights that containers rarely have.
    "NCCL_NVLS_ENABLE": "0",
    # A rank that ends is noticed and named by rank_processes.py. torch would end this process without a word of it,
    # also one that was only stopped for a while.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
}

# Inputs → outputs of a program.
Run = Callable[[Sequence[Tensor]], list[Tensor]]
# Meets the other ranks when this one has loaded what it needs no others for.
Join = Callable[[], "ProcessRanks"]


class ProcessRanks:
    """One rank of several processes, each with a device of its own: gloo between processors, NCCL between GPUs."""

    def __init__(self, device: Device, folder: Path, rank: int, size: int) -> None:
        """Returns when all ranks have come. Raises RuntimeError when they do not within TIMEOUT_S."""
        self.rank, self.size = rank, size
        self._is_cuda = device == "cuda"
        self._ending, self._is_over = threading.Lock(), False
        store = c10d.FileStore(str(folder / STORE_NAME), size)
        self._backend: Any = (_make_nccl if self._is_cuda else _make_gloo)(store, rank, size)

    def all_reduce(self, x: Tensor) -> Tensor:
        """See Group. Processors add up in float32, in the order of the ranks."""
        if not self._is_cuda:
            sums: Tensor = self._collect(x).float().sum(0).to(x.dtype)
            return sums
        y = x.clone(memory_format=torch.contiguous_format)
        _finish(self._backend.allreduce([y], _in_order(c10d.AllreduceOptions())))
        return y

    def all_gather(self, x: Tensor) -> Tensor:
        """See Group."""
        return self._collect(x).movedim(0, -2).flatten(-2)

    def broadcast(self, x: Tensor) -> None:
        """Overwrite x with that of rank 0."""
        options = _in_order(c10d.BroadcastOptions())
        options.rootRank = options.rootTensor = 0
        _finish(self._backend.broadcast([x], options))

    def smallest(self, number: int) -> int:
        """The smallest of the numbers that the ranks bring."""
        return int(self._collect(torch.tensor([number], device="cuda" if self._is_cuda else "cpu")).min().item())

    def abort(self) -> None:
        """Let operations of GPUs end without an answer, for any thread; processors hear of a rank's end by themselves.

        Nothing can be asked of the group again. Waits for the end of graphs that hold operations of the group.
        """
        with self._ending:
            is_over, self._is_over = self._is_over, True
        if self._is_cuda and not is_over:
            self._backend.abort()

    def _collect(self, x: Tensor) -> Tensor:
        """The x of all ranks, [R, …]."""
        x = x.contiguous()
        all_x = x.new_empty((self.size, *x.shape))
        _finish(self._backend._allgather_base(all_x.view(-1), x.view(-1), _in_order(c10d.AllgatherOptions())))
        return all_x


class ThreadRanks:
    """One rank of several threads of this process, over one device: what compiled ranks are compared with."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting, self._rank = meeting, rank

    def all_reduce(self, x: Tensor) -> Tensor:
        """See Group."""
        return torch.stack(self._meeting.exchange(self._rank, x)).float().sum(0).to(x.dtype)

    def all_gather(self, x: Tensor) -> Tensor:
        """See Group."""
        return torch.cat(self._meeting.exchange(self._rank, x), -1)


class Meeting:
    """Where the threads of ThreadRanks meet. A thread holds `turn` while it computes, so that one does at a time."""

    def __init__(self, size: int) -> None:
        self.turn = threading.Lock()
        self._brought: list[Tensor] = [torch.empty(0)] * size
        self._barrier = threading.Barrier(size, timeout=TIMEOUT_S)

    def exchange(self, rank: int, x: Tensor) -> list[Tensor]:
        """What every rank brought. Raises BrokenBarrierError, a RuntimeError, where one of them left."""
        self._brought[rank] = x
        self._wait()
        found = list(self._brought)
        # Nobody may bring the next one before all have taken this.
        self._wait()
        return found

    def leave(self) -> None:
        """Have all that wait for a rank hear that it will not come."""
        self._barrier.abort()

    def _wait(self) -> None:
        self.turn.release()
        try:
            self._barrier.wait()
        finally:
            self.turn.acquire()


class Noting:
    """A group that keeps the error of an operation: compiled code tells no more of it than that there was one."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.error: Exception | None = None

    def all_reduce(self, x: Tensor) -> Tensor:
        return self._note(lambda: self._group.all_reduce(x))

    def all_gather(self, x: Tensor) -> Tensor:
        return self._note(lambda: self._group.all_gather(x))

    def _note(self, ask: Callable[[], Tensor]) -> Tensor:
        try:
            return ask()
        except Exception as error:
            self.error = error
            raise


def in_group(run: Run, group: Group) -> Run:
    """A program whose operators meet in a group; raises what they raised."""
    noting = Noting(group)

    def run_in_group(inputs: Sequence[Tensor]) -> list[Tensor]:
        noting.error = None
        try:
            with use_group(noting):
                return run(inputs)
        except RuntimeError:
            if noting.error is not None:
                raise noting.error from None
            raise

    return run_in_group


def rank_environment(device: Device, rank: int, environ: dict[str, str]) -> dict[str, str]:
    """The environment of a rank other than 0: this process's, and of its GPUs the one with the rank's number alone.

    So every rank computes on what is the first GPU to it, which is what programs are compiled for.
    """
    if device != "cuda":
        return dict(environ)
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    own = str(rank) if visible is None else visible.split(",")[rank].strip()
    return {**nccl_defaults(environ), **environ, "CUDA_VISIBLE_DEVICES": own}


def nccl_defaults(environ: dict[str, str]) -> dict[str, str]:
    """What NCCL, and torch's threads around it, are told unless the user did."""
    return {name: value for name, value in NCCL_DEFAULTS.items() if name not in environ}


@contextmanager
def _nccl_environment() -> Iterator[None]:
    """Have this process read the defaults while a group is made, and leave its environment as it was."""
    added = nccl_defaults(dict(os.environ))
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _make_gloo(store: c10d.Store, rank: int, size: int) -> Any:
    options: Any = c10d.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=TIMEOUT_S)
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    return c10d.ProcessGroupGloo(store, rank, size, options)


def _make_nccl(store: c10d.Store, rank: int, size: int) -> Any:
    options: Any = c10d.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=TIMEOUT_S)
    one = torch.ones(1, device="cuda")
    with _nccl_environment():
        group: Any = c10d.ProcessGroupNCCL(store, rank, size, options)
        # Connects the ranks now: what is done at first use cannot be captured into a graph.
        group.allreduce([one], c10d.AllreduceOptions()).wait()
    if one.item() != size:
        raise RuntimeError(f"the GPUs of {size} ranks do not add up: 1 from each gave {one.item():g}")
    return group


def _finish(work: Any) -> None:
    """Wait for an operation, or have the current stream wait; NCCL gives nothing back of one that is in order."""
    if work is not None:
        work.wait()


def _in_order(options: Any) -> Any:
    """Run on the current stream, as the operators around it, where this release of torch can."""
    if hasattr(options, "asyncOp"):
        options.asyncOp = False
    return options
