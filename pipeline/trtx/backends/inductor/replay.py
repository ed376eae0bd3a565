"""What a build measured, for the builds that shall choose the same: between an entry's summary, a lock and a build.

Everything else that the compiler chooses follows from the key. Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trtx.errors import UsageProblem

# By the kernel's file less its ending, as inductor keeps it: two characters, a slash, a digest.
KernelConfigs = dict[str, dict[str, Any]]

# Groups of LockedBuild.choices and of a build's summary.
PRODUCTS = "products"
KERNELS = " kernels"

_CONFIG_NAME = re.compile(r"[a-z0-9]{2}/[a-z0-9]+")
# Kind, tokens, rows, columns, then the way: see kernels/cuda/products.h.
_RECORD = re.compile(r"[\w-]+ \d+ \d+ \d+ (few|apart|streamed \d+ \d+|[0-9a-f]+)")


@dataclass(frozen=True)
class Replay:
    """Records of products (EngineCard.products), and the configurations of Triton kernels by program."""

    products: tuple[str, ...] = ()
    configs: Mapping[str, KernelConfigs] = field(default_factory=dict)

    def to_groups(self) -> dict[str, dict[str, Any]]:
        """Two levels of plain values: products by shape, kernels by name; empty where nothing was measured."""
        groups: dict[str, dict[str, Any]] = {}
        if self.products:
            groups[PRODUCTS] = dict(split_record(record) for record in self.products)
        for program, configs in self.configs.items():
            if configs:
                groups[program + KERNELS] = {name: json.dumps(one, sort_keys=True) for name, one in configs.items()}
        return groups


def split_record(record: str) -> tuple[str, str]:
    """The shape of a product, with its kind, and the way that it is computed."""
    words = record.split(" ")
    return " ".join(words[:4]), " ".join(words[4:])


def read_replay(groups: Mapping[str, Any]) -> Replay:
    """What was measured, of the choices of a lock or a summary; groups of other things are left out.

    Raises UsageProblem for choices that nobody's build wrote.
    """
    try:
        products = [f"{shape} {way}" for shape, way in groups.get(PRODUCTS, {}).items()]
        configs = {
            name.removesuffix(KERNELS): {path: json.loads(text) for path, text in members.items()}
            for name, members in groups.items()
            if name.endswith(KERNELS)
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise _unreadable(str(error)) from error
    for record in products:
        if not _RECORD.fullmatch(record):
            raise _unreadable(f"'{record}' is no record of a product")
    for path, config in (item for kernels in configs.values() for item in kernels.items()):
        # The name becomes a file's.
        if not _CONFIG_NAME.fullmatch(path) or not isinstance(config, dict):
            raise _unreadable(f"'{path}' is no configuration of a kernel")
    return Replay(tuple(products), configs)


def keep_measured(groups: Mapping[str, Any]) -> dict[str, Any]:
    """The groups of choices that were measured, of all that a lock or a summary has."""
    return {name: members for name, members in groups.items() if name == PRODUCTS or name.endswith(KERNELS)}


def _unreadable(why: str) -> UsageProblem:
    return UsageProblem(
        "the choices that a build shall repeat cannot be read",
        why=why,
        fix="get the committed lock back, or delete it: the build measures anew",
    )
