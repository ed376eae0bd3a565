"""How the ranks of an engine are started: one process a GPU, by mpirun on one host or srun over several."""

from __future__ import annotations

from dataclasses import dataclass

from trtx.backends.tensorrt_llm.spec import Ranks
from trtx.errors import UsageProblem

# What makes all ranks but the first workers of the first: docs/source of 1.3.0rc3, multi-node.
LAUNCHER = "trtllm-llmapi-launch"
# Of the largest hosts that NVIDIA builds with one NVLink domain a host (HGX).
GPUS_PER_HOST = 8
# Slurm's PMI plugins that Open MPI of the containers speaks.
MPI_PLUGINS = ("pmix", "pmi2")
# Options of Triton for all ranks but the first: one host has each port once.
FOLLOWER = (
    *("--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"),
    *("--model-control-mode=explicit", "--load-model=tensorrt_llm"),
)


@dataclass(frozen=True)
class Launch:
    """Processes and GPUs of one engine, over hosts."""

    ranks: int
    hosts: int
    gpus_per_host: int


def plan_launch(ranks: Ranks, gpus_per_host: int = GPUS_PER_HOST) -> Launch:
    """How many hosts an engine takes, every host with as many ranks.

    Raises UsageProblem when its ranks do not divide over hosts.
    """
    world = ranks.world_size
    hosts = -(-world // gpus_per_host)
    if world % hosts:
        raise UsageProblem(
            f"{world} ranks do not divide over {hosts} hosts of {gpus_per_host} GPUs",
            why="every host gets as many ranks",
            fix="choose parallelism whose product is a multiple of the hosts",
        )
    return Launch(world, hosts, world // hosts)


def srun_words(launch: Launch, *, mpi: str = "pmix", container: str | None = None) -> tuple[str, ...]:
    """Words before a command over the hosts of a Slurm job; `container` is an image for pyxis."""
    if mpi not in MPI_PLUGINS:
        raise UsageProblem(f"srun --mpi={mpi} starts no ranks", why=f"known are {', '.join(MPI_PLUGINS)}")
    words = ("srun", f"--mpi={mpi}", f"--nodes={launch.hosts}", f"--ntasks={launch.ranks}")
    gpus = (f"--ntasks-per-node={launch.gpus_per_host}", f"--gpus-per-node={launch.gpus_per_host}")
    return (*words, *gpus, *((f"--container-image={container}",) if container else ()))


def start_words(launch: Launch, words: tuple[str, ...], *, container: str | None = None) -> tuple[str, ...]:
    """A command of the LLM API (trtllm-serve, trtllm-bench) with all its ranks.

    On one host it starts its ranks itself; over several, every rank of the job runs it behind trtllm-llmapi-launch.
    """
    if launch.hosts == 1:
        return words
    return (*srun_words(launch, container=container), LAUNCHER, *words)


def triton_words(launch: Launch, repository: str, *, engine: bool) -> tuple[str, ...]:
    """Triton on a model repository, one process a rank of an engine; the LLM API starts its ranks itself.

    The backend's leader mode is one MPI job: the first rank serves all models, the others load the engine alone and
    listen nowhere. Source: triton_backend/scripts/launch_triton_server.py (1.3.0rc3).
    """
    if not engine or launch.ranks == 1:
        return _tritonserver(repository, 0)
    words: list[str] = ["mpirun", "--allow-run-as-root", "--oversubscribe"]
    for rank in range(launch.ranks):
        words += [*(":",) * (rank > 0), "-n", "1", *_tritonserver(repository, rank), *(FOLLOWER if rank else ())]
    return tuple(words)


def _tritonserver(repository: str, rank: int) -> tuple[str, ...]:
    # Ranks of one machine must not share the memory between a server and its Python models.
    region = f"--backend-config=python,shm-region-prefix-name=prefix{rank}_"
    return ("tritonserver", f"--model-repository={repository}", "--disable-auto-complete-config", region)
