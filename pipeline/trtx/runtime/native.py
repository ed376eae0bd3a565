"""Loads an engine's kernel library, and runs compiled programs through it. Needs no compiler and no inductor."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trtx.errors import VerificationFailed
from trtx.kernels import ops

_loaded: set[str] = set()
_loading = threading.Lock()


def load_kernels(library: Path, namespace: str) -> Any:
    """The operators of a library, loaded into the process when its namespace is not there yet.

    Raises VerificationFailed when it cannot be loaded, or is another namespace's.
    """
    operators = ops.declare(namespace)
    with _loading:
        if namespace not in _loaded:
            try:
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
                operators.current_level()
            except (OSError, RuntimeError) as error:
                raise VerificationFailed(
                    f"the kernels {library} cannot be used",
                    why=str(error).splitlines()[0],
                    fix="rebuild the engine with `trtx apply`",
                ) from error
            _loaded.add(namespace)
    return operators


class NativeProgram:
    """One compiled package over weights that are not copied.

    Calls release the GIL. Those of several threads run one after another; nothing is held while one waits.
    """

    def __init__(self, operators: Any, folder: Path, model: str, weights: Mapping[str, Tensor]) -> None:
        self._run: Callable[[int, Sequence[Tensor]], list[Tensor]] = operators.run_program
        self._weights = weights  # the program keeps bare pointers into these tensors
        self._program: int = operators.load_program(str(folder), model)
        self._finalizer = weakref.finalize(self, operators.unload_program, self._program)
        names = operators.constant_names(self._program)
        operators.set_constants(self._program, names, [weights[name] for name in names])

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return self._run(self._program, inputs)
