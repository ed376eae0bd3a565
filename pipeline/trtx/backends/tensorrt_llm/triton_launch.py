"""The command line that starts Triton with a repository of TensorRT-LLM: one server, or one a rank by mpirun."""

from __future__ import annotations

from collections.abc import Sequence

from trtx.backends.tensorrt_llm.spec import TrtllmSpec

SERVER = "/opt/tritonserver/bin/tritonserver"
BACKEND_MODEL = "tensorrt_llm"


def triton_argv(
    spec: TrtllmSpec,
    repository: str,
    *,
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    options: Sequence[str] = (),
) -> list[str]:
    """The words that start the server in its container.

    An engine of several ranks is one MPI job (the backend's leader mode): rank 0 serves all models, the others load
    the backend's model only and listen nowhere. The PyTorch backend starts its ranks itself. `options` go to rank 0.

    Source of the MPI form: triton_backend/scripts/launch_triton_server.py (1.3.0rc3).
    """
    leader = _server(
        repository,
        0,
        (f"--http-port={http_port}", f"--grpc-port={grpc_port}", f"--metrics-port={metrics_port}", *options),
    )
    if spec.flow == "pytorch" or spec.ranks.world_size == 1:
        return leader
    argv = ["mpirun", "--allow-run-as-root", "-n", "1", *leader]
    for rank in range(1, spec.ranks.world_size):
        silent = ("--allow-http=false", "--allow-grpc=false", "--allow-metrics=false")
        chosen = ("--model-control-mode=explicit", f"--load-model={BACKEND_MODEL}")
        argv += [":", "-n", "1", *_server(repository, rank, (*silent, *chosen))]
    return argv


def _server(repository: str, rank: int, options: Sequence[str]) -> list[str]:
    return [
        SERVER,
        f"--model-repository={repository}",
        "--disable-auto-complete-config",
        # Ranks of one machine must not share the memory between a server and its Python models.
        f"--backend-config=python,shm-region-prefix-name=rank{rank}_",
        *options,
    ]
