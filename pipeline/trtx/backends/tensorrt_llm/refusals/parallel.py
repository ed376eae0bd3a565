"""Ranks: what heads, experts, vocabulary, layers and nodes can be divided by."""

from __future__ import annotations

from collections.abc import Iterator

from trtx.backends.tensorrt_llm.refusals.base import Refusal, Subject, refuse_by

TENSOR = ("parallelism", "tensor")
EXPERT = ("parallelism", "expert")
MAPPING = "tensorrt_llm/mapping.py:108-130"
CONTEXT_FROM = "0.16.0"


def check_heads(subject: Subject) -> Iterator[Refusal]:
    shape, tensor = subject.shape, subject.parallelism.tensor
    if shape is None or tensor == 1:
        return
    if shape.num_heads % tensor:
        what = f"{shape.num_heads} attention heads cannot be divided by tensor parallelism {tensor}"
        yield refuse_by(subject, "heads-tp", TENSOR, what, f"use one of {_divisors(shape.num_heads)}")
    elif not shape.latent_channels and shape.num_kv_heads >= tensor and shape.num_kv_heads % tensor:
        what = f"{shape.num_kv_heads} key-value heads cannot be divided by tensor parallelism {tensor}"
        yield refuse_by(subject, "kv-heads-tp", TENSOR, what, f"use one of {_divisors(shape.num_kv_heads)}")
    elif not shape.latent_channels and shape.num_kv_heads < tensor and tensor % shape.num_kv_heads:
        what = f"{shape.num_kv_heads} key-value heads cannot be duplicated evenly over {tensor} ranks"
        yield refuse_by(subject, "kv-heads-tp", TENSOR, what, f"use a multiple of {shape.num_kv_heads}")


def check_vocabulary(subject: Subject) -> Iterator[Refusal]:
    shape, tensor = subject.shape, subject.parallelism.tensor
    if shape is not None and subject.flow == "engine" and shape.vocab_size % tensor:
        padded = -(-shape.vocab_size // tensor) * tensor
        what = f"the vocabulary of {shape.vocab_size} is padded to {padded} for tensor parallelism {tensor}"
        yield refuse_by(subject, "vocab-tp", TENSOR, what, "nothing is to be done; logits have the padded size")


def check_experts(subject: Subject) -> Iterator[Refusal]:
    ways, shape = subject.parallelism, subject.shape
    if ways.expert == 1:
        return
    if ways.tensor % ways.expert:
        what = f"{ways.tensor} tensor ranks cannot be divided into {ways.expert} groups of experts"
        fix = f"use one of {_divisors(ways.tensor)}"
        yield refuse_by(subject, "moe-world-size", EXPERT, what, fix, why="moe_tp · moe_ep is tensor parallelism")
    if shape is not None and not shape.num_experts:
        yield Refusal(
            "experts",
            EXPERT,
            f"{shape.architecture} has no experts to be divided",
            "config.json names none",
            "remove it",
            MAPPING,
            at_key=True,
        )
    elif shape is not None and shape.num_experts % ways.expert:
        yield Refusal(
            "experts",
            EXPERT,
            f"{shape.num_experts} experts cannot be divided into {ways.expert} groups",
            "every group holds as many",
            f"use one of {_divisors(shape.num_experts)}",
            MAPPING,
        )


def check_expert_columns(subject: Subject) -> Iterator[Refusal]:
    shape, ways = subject.shape, subject.parallelism
    if shape is None or not shape.num_experts or ways.tensor % ways.expert:
        return
    share = ways.tensor // ways.expert
    if share > 1 and shape.expert_size % share:
        yield Refusal(
            "experts",
            TENSOR,
            f"the {shape.expert_size} columns of an expert cannot be divided over {share} ranks",
            "tensor ranks ÷ groups of experts share each expert",
            "raise parallelism.expert",
            MAPPING,
        )


def check_layers(subject: Subject) -> Iterator[Refusal]:
    shape, pipeline = subject.shape, subject.parallelism.pipeline
    if shape is not None and pipeline > shape.num_layers:
        yield Refusal(
            "layers",
            ("parallelism", "pipeline"),
            f"{shape.num_layers} layers cannot be divided over {pipeline} pipeline ranks",
            "every rank needs a layer",
            f"use at most {shape.num_layers}",
            "tensorrt_llm/mapping.py:336-353",
        )


def lacks_context(subject: Subject) -> bool:
    """Whether an engine is to have context parallelism and the release writes no checkpoints for it."""
    tool = subject.release.tools.get("quantize.py")
    wanted = subject.parallelism.context > 1 and subject.flow == "engine"
    return wanted and tool is not None and tool.option("cp_size") is None


def check_context_ranks(subject: Subject) -> Iterator[Refusal]:
    if lacks_context(subject):
        yield Refusal(
            "context-parallel",
            ("parallelism", "context"),
            f"{subject.title} writes no checkpoint for context parallelism",
            f"--cp_size exists since {CONTEXT_FROM}",
            "use 1, or a newer release",
            "examples/quantization/quantize.py",
        )


def check_nodes(subject: Subject) -> Iterator[Refusal]:
    world, per_node = subject.world_size, subject.parallelism.gpus_per_node
    nodes = -(-world // per_node)
    if world % nodes:
        yield Refusal(
            "world-size",
            TENSOR,
            f"{world} ranks cannot be spread evenly over {nodes} nodes of {per_node} GPUs",
            "every node gets as many ranks",
            f"use a world of {per_node * nodes} ranks, or set gpus_per_node",
            "runs under mpirun and srun",
        )


def check_measurement(subject: Subject) -> Iterator[Refusal]:
    """An engine over several nodes is packaged with how to start it; trtllm-bench is run on one node."""
    nodes = -(-subject.world_size // subject.parallelism.gpus_per_node)
    if subject.measures and nodes > 1:
        yield Refusal(
            "benchmark-nodes",
            TENSOR,
            f"a benchmark over {nodes} nodes is not run by this version",
            f"{subject.world_size} ranks are more than the {subject.parallelism.gpus_per_node} GPUs of a node",
            "leave the benchmark out and measure what is packaged, or use fewer ranks",
            "trtx",
        )


def check_gpus_of_job(subject: Subject) -> Iterator[Refusal]:
    asked = subject.job.gpus
    if asked is None:
        return
    number = int(asked.rpartition(":")[2])
    needed = min(subject.world_size, subject.parallelism.gpus_per_node)
    if number < needed:
        yield refuse_by(
            subject,
            "world-size",
            ("job", "gpus"),
            f"the job asks for {number} GPUs of a node, and {subject.world_size} ranks need {needed}",
            f"write {needed}, or remove it: GPUs follow from parallelism",
            why="one rank is one GPU: tensor × pipeline × context",
        )


def check_groups(subject: Subject) -> Iterator[Refusal]:
    """Group-wise INT4: a group of columns cannot be cut in two."""
    shape, tensor = subject.shape, subject.parallelism.tensor
    if shape is None or subject.algorithm not in ("int4_awq", "int4_gptq", "w4a8_awq"):
        return
    for noun, size in (("hidden_size", shape.hidden_size), ("intermediate_size", shape.intermediate_size // tensor)):
        if size % 128:
            yield Refusal(
                "groups",
                ("quantization", "algorithm"),
                f"{subject.algorithm} needs columns in groups of 128, and {noun} has {size} on each rank",
                "TensorRT-LLM pads such layers, and exporters do not write them",
                "use an algorithm without groups, or less tensor parallelism",
                "tensorrt_llm/quantization/layers.py",
            )


def _divisors(number: int) -> str:
    return ", ".join(str(way) for way in (1, 2, 4, 8, 16, 32) if number % way == 0)


CHECKS = (
    check_heads,
    check_vocabulary,
    check_experts,
    check_expert_columns,
    check_layers,
    check_context_ranks,
    check_nodes,
    check_measurement,
    check_gpus_of_job,
    check_groups,
)
