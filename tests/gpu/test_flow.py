"""A small recipe through all steps on a GPU: quantized there, compiled, checked, measured, packaged, served."""

from __future__ import annotations

from pathlib import Path

from support.gpu_flow import PACKAGE, apply

PROMPTS = [f"Return the {number} of" for number in range(12)]
# In nats. The logits of the random model have a deviation of 1.3, and rounding moves them by a few hundredths.
NEARLY_EQUAL = 0.3


def test_a_second_apply_finds_everything_in_the_cache(applied: Path) -> None:
    states = {row["step"]: row["state"] for row in apply(applied)}
    assert states == dict.fromkeys(
        [
            "download/model",
            "download/docs",
            "calibrate/fp8",
            "convert/h200/fp8",
            "build/h200/fp8",
            "benchmark/h200/fp8",
            "package/h200/fp8",
        ],
        "cached",
    )


def test_the_packaged_engine_generates_in_flight_what_it_generates_alone(applied: Path) -> None:
    """Products of other shapes round in another order, and the logits of a random model lie close together.

    So answers may part where two tokens are nearly equally likely, and nowhere else.
    """
    from trtx.llm import LLM
    from trtx.runtime.params import SamplingParams

    with LLM(applied / PACKAGE) as llm:
        params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
        together = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)]
        asking = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True, logprobs=20)
        alone = [llm.generate([prompt], asking)[0].outputs[0] for prompt in PROMPTS]
    for mine, theirs in zip(together, alone, strict=True):
        assert len(mine) == len(theirs.token_ids) == 24
        parted = next((at for at in range(24) if mine[at] != theirs.token_ids[at]), None)
        if parted is None:
            continue
        assert theirs.logprobs is not None
        likely = theirs.logprobs[parted]
        assert mine[parted] in likely, f"token {parted} is none of the 20 most likely ones"
        behind = likely[theirs.token_ids[parted]].logprob - likely[mine[parted]].logprob
        assert behind < NEARLY_EQUAL


def test_the_packaged_engine_draws_with_every_filter(applied: Path) -> None:
    from trtx.llm import LLM
    from trtx.runtime.params import SamplingParams

    params = SamplingParams(max_tokens=24, temperature=0.9, top_k=40, top_p=0.9, min_p=0.01, seed=3, ignore_eos=True)
    with LLM(applied / PACKAGE) as llm:
        found = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)]
    assert [len(tokens) for tokens in found] == [24] * len(PROMPTS)
    # One seed for all, but each has logits of its own.
    assert len({tuple(tokens) for tokens in found}) > 1
