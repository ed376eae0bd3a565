"""How many KV-cache blocks an engine gets. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trtx.errors import EnvironmentProblem
from trtx.hardware.host import cgroup_folders
from trtx.runtime.card import EngineCard

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int8": 1}

MIB = 1 << 20


def block_bytes(card: EngineCard) -> int:
    """Bytes of one block: keys and values of `tokens_per_block` tokens in every layer."""
    cache = card.kv_cache
    numbers = 2 * cache.num_layers * cache.tokens_per_block * cache.num_kv_heads * cache.head_dim
    return numbers * ITEM_BYTES[cache.dtype]


def blocks_per_sequence(card: EngineCard) -> int:
    """Blocks of one sequence of max_seq_len tokens: the widest block table."""
    return -(-card.limits.max_seq_len // card.kv_cache.tokens_per_block)


@dataclass(frozen=True)
class PoolSize:
    """How large the pools shall be: `kv_cache_bytes`, or, when that is None, what is left of `memory_fraction`."""

    kv_cache_bytes: int | None
    memory_fraction: float
    weights_bytes: int

    def count_blocks(self, card: EngineCard, available: int | None = None, working_bytes: int = 0) -> int:
        """Blocks of the pools, as plan_num_blocks. Raises EnvironmentProblem as it does."""
        return plan_num_blocks(
            card,
            kv_cache_bytes=self.kv_cache_bytes,
            memory_fraction=self.memory_fraction,
            weights_bytes=self.weights_bytes,
            available=available,
            working_bytes=working_bytes,
        )


def plan_num_blocks(
    card: EngineCard,
    *,
    kv_cache_bytes: int | None,
    memory_fraction: float,
    weights_bytes: int,
    available: int | None = None,
    working_bytes: int = 0,
) -> int:
    """Blocks of the pool, the null block among them.

    They fill `kv_cache_bytes`, or, when that is None, `memory_fraction` of the memory that is available now less the
    weights and `working_bytes`, what code, steps and graphs of a device take (runtime/cuda_memory.py measures it);
    `available` is that of a device, None for this machine's. There are never more than max_batch_size sequences of
    max_seq_len can use.

    Raises EnvironmentProblem when one sequence of max_seq_len does not fit.
    """
    if kv_cache_bytes is None:
        available = available_bytes() if available is None else available
        budget = int(available * memory_fraction) - weights_bytes - working_bytes
        source = f"{memory_fraction:.0%} of {_mib(available)} available, less {_mib(weights_bytes)} for the weights"
        if working_bytes:
            source += f" and {_mib(working_bytes)} for code, the largest step and graphs"
    else:
        budget, source = kv_cache_bytes, "the KV-cache size asked for"
    fitting = budget // block_bytes(card)
    smallest = blocks_per_sequence(card) + 1
    if fitting < smallest:
        raise EnvironmentProblem(
            f"the KV cache would have {_mib(max(budget, 0))}, and one sequence of max_seq_len"
            f" {card.limits.max_seq_len} needs {_mib(smallest * block_bytes(card))}",
            why=source,
            fix=_how_to_fit(card, fitting, sized=kv_cache_bytes is not None, works=working_bytes > 0),
        )
    return min(fitting, card.limits.max_batch_size * blocks_per_sequence(card) + 1)


def _how_to_fit(card: EngineCard, fitting: int, *, sized: bool, works: bool) -> str:
    more = "give the KV cache a larger size" if sized else "free memory, or raise the memory fraction"
    if works and not sized:
        more += ", or rebuild the engine with a smaller max_num_tokens, which makes its largest step smaller"
    # One block is the null block.
    tokens = (fitting - 1) * card.kv_cache.tokens_per_block
    if tokens < 2:
        return more if sized else f"{more}: the weights alone leave nothing; quantizing them makes them smaller"
    return f"{more}, or rebuild the engine with a max_seq_len of at most {tokens}"


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that this process can still take: what the kernel calls available, or what the tightest cgroup leaves."""
    sizes = [_kernel_available(proc / "meminfo")]
    for folder in cgroup_folders(proc, cgroup, "memory"):
        # The first pair of names is cgroup 2's, the second cgroup 1's.
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            if (folder / limit).is_file() and (text := (folder / limit).read_text().strip()) != "max":
                sizes.append(int(text) - int((folder / used).read_text()))
    return max(0, min(sizes))


def _kernel_available(meminfo: Path) -> int:
    # proc(5): values are in kB, which here means 1024 bytes.
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise EnvironmentProblem("cannot tell how much memory is free", why=f"{meminfo} names no MemAvailable")


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:.1f} MiB"
