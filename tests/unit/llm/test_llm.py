"""The Python API around an engine of tests."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import threading
from collections.abc import Iterator

import pytest
import torch
from support.engines import EOS_ID, FakePrograms, expected_tokens, make_card, make_engine, make_tokenizer

from trtx import LLM, SamplingParams
from trtx.llm import EngineFailed, GenerationFailed, RequestOutput, RequestRefused
from trtx.runtime.engine import Engine

GREEDY = SamplingParams(max_tokens=12, temperature=0)
ENDLESS = SamplingParams(max_tokens=3000, temperature=0, ignore_eos=True)


@pytest.fixture
def llm() -> Iterator[LLM]:
    with LLM.of(make_engine()) as llm:
        yield llm
        assert llm.get_stats()["kv_blocks_used"] == 0


@pytest.fixture
def endless() -> Iterator[LLM]:
    """An engine whose requests are as long as 3,000 tokens."""
    with LLM.of(Engine(FakePrograms(make_card(max_seq_len=4096), num_blocks=4096), make_tokenizer())) as llm:
        yield llm


def decode(tokens: list[int]) -> str:
    return make_tokenizer().decode(tokens)


def test_prompts_of_every_form_are_completed_in_their_order(llm: LLM) -> None:
    encoded = make_tokenizer().encode("hello")
    prompts = ["hello", [5, 6], {"prompt": "hello"}, {"prompt_token_ids": [7]}]
    outputs = llm.generate(prompts, GREEDY)
    assert [output.prompt for output in outputs] == ["hello", None, "hello", None]
    assert [output.prompt_token_ids for output in outputs] == [encoded, [5, 6], encoded, [7]]
    for output in outputs:
        (choice,) = output.outputs
        assert output.finished
        assert choice.token_ids == expected_tokens(output.prompt_token_ids, 12)
        assert choice.text == decode(choice.token_ids)
        assert choice.finish_reason == ("stop" if choice.token_ids[-1] == EOS_ID else "length")
        assert (choice.logprobs, choice.cumulative_logprob, choice.stop_reason) == (None, None, None)


@pytest.mark.parametrize("prompt", ["hello", [5, 6], {"prompt_token_ids": [5, 6]}])
def test_one_prompt_is_a_list_of_one(llm: LLM, prompt: object) -> None:
    assert len(llm.generate(prompt, GREEDY)) == 1  # type: ignore[arg-type]


def test_each_prompt_can_have_parameters_of_its_own(llm: LLM) -> None:
    found = llm.generate([[1], [1]], [GREEDY, SamplingParams(max_tokens=2, temperature=0)])
    assert [len(output.outputs[0].token_ids) for output in found] == [len(expected_tokens([1], 12)), 2]
    with pytest.raises(Exception, match="1 sampling parameters for 2 prompts"):
        llm.generate([[1], [1]], [GREEDY])


def test_n_choices_share_a_prompt_and_have_seeds_of_their_own(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=11, temperature=3.0, max_tokens=8, ignore_eos=True)
    (output,) = llm.generate([[1, 2]], params)
    assert [choice.index for choice in output.outputs] == [0, 1, 2]
    alone = [
        llm.generate([[1, 2]], SamplingParams(seed=11 + n, temperature=3.0, max_tokens=8, ignore_eos=True))[0]
        for n in range(3)
    ]
    assert [choice.token_ids for choice in output.outputs] == [one.outputs[0].token_ids for one in alone]
    assert len({tuple(choice.token_ids) for choice in output.outputs}) == 3


def test_logprobs_have_text_bytes_and_a_sum(llm: LLM) -> None:
    (output,) = llm.generate([[1, 2]], SamplingParams(max_tokens=4, temperature=0, logprobs=2, ignore_eos=True))
    (choice,) = output.outputs
    assert choice.logprobs is not None
    assert len(choice.logprobs) == 4
    for token_id, position in zip(choice.token_ids, choice.logprobs, strict=True):
        best, second = position
        assert (best, second) == (token_id, token_id + 1)
        assert [position[token].rank for token in position] == [1, 2]
        assert position[best].decoded_token == decode([best])
        assert position[best].token_bytes == decode([best]).encode()
        # The fake model's logits fall by a half from token to token.
        assert position[best].logprob - position[second].logprob == pytest.approx(0.5, abs=1e-4)
    chosen = [position[token].logprob for token, position in zip(choice.token_ids, choice.logprobs, strict=True)]
    assert choice.cumulative_logprob == pytest.approx(sum(chosen))


def test_a_stop_string_is_named_as_the_reason(llm: LLM) -> None:
    first = next(n for n in range(256) if EOS_ID not in expected_tokens([n], 12))
    text = decode(expected_tokens([first], 12))
    (output,) = llm.generate([[first]], SamplingParams(max_tokens=12, temperature=0, stop=text[4:7]))
    choice = output.outputs[0]
    assert (choice.finish_reason, choice.stop_reason, choice.text) == ("stop", text[4:7], text[:4])
    token = expected_tokens([first], 12)[5]
    params = SamplingParams(max_tokens=12, temperature=0, stop_token_ids=[token], include_stop_str_in_output=True)
    choice = llm.generate([[first]], params)[0].outputs[0]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", token)
    assert choice.text.endswith(decode([token]))


def test_a_chat_is_written_by_the_template_and_tools_are_given_to_it() -> None:
    template = "{% for t in tools or [] %}<{{ t.name }}>{% endfor %}{{ mood }}{{ messages[0].content }}"
    tokenizer = make_tokenizer(chat_template=template)
    with LLM.of(Engine(FakePrograms(make_card()), tokenizer)) as llm:
        message = {"role": "user", "content": "hi"}
        kwargs = {"mood": "good "}
        (one,) = llm.chat([message], GREEDY, tools=[{"name": "f"}], chat_template_kwargs=kwargs)
        two = llm.chat([[message], [message]], GREEDY)
    assert tokenizer.decode(one.prompt_token_ids) == "<f>good hi"
    assert [tokenizer.decode(output.prompt_token_ids) for output in two] == ["hi", "hi"]


def test_a_stream_grows_and_its_differences_are_the_whole(llm: LLM) -> None:
    async def read() -> list[RequestOutput]:
        return [output async for output in llm.generate_async([1, 2], GREEDY)]

    outputs = asyncio.run(read())
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    final = outputs[-1].outputs[0]
    assert final.token_ids == expected_tokens([1, 2], 12)
    assert "".join(output.outputs[0].text_diff for output in outputs) == final.text
    assert [token for output in outputs for token in output.outputs[0].token_ids_diff] == final.token_ids


def test_many_are_awaited_at_once_and_waited_for_in_threads(llm: LLM) -> None:
    async def main() -> list[RequestOutput]:
        return await asyncio.gather(*(llm.generate_async([n], GREEDY) for n in range(20)))

    assert [o.outputs[0].token_ids for o in asyncio.run(main())] == [expected_tokens([n], 12) for n in range(20)]
    found: dict[int, list[int]] = {}

    def ask(n: int) -> None:
        found[n] = llm.generate_async([n], GREEDY).result(timeout=20).outputs[0].token_ids

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: expected_tokens([n], 12) for n in range(8)}


def test_without_streaming_there_is_one_output(llm: LLM) -> None:
    async def read() -> list[RequestOutput]:
        return [output async for output in llm.generate_async([1], GREEDY, streaming=False)]

    (output,) = asyncio.run(read())
    assert output.finished


def wait_until_free(llm: LLM) -> None:
    for _ in range(2000):
        if llm.get_stats()["kv_blocks_used"] == 0:
            return
        threading.Event().wait(0.01)
    pytest.fail("blocks are still in use")


def test_leaving_a_stream_early_frees_its_blocks(endless: LLM) -> None:
    async def read_one() -> None:
        async for output in endless.generate_async([1], ENDLESS):
            assert not output.finished
            break

    asyncio.run(read_one())
    wait_until_free(endless)
    assert endless.get_stats()["finished"]["cancelled"] == 1


def test_an_aborted_request_ends_as_cancelled(endless: LLM) -> None:
    generation = endless.generate_async([1], ENDLESS)
    with pytest.raises(TimeoutError):
        generation.result(timeout=0.01)
    generation.abort()
    assert generation.result(timeout=20).outputs[0].finish_reason == "cancelled"
    generation.abort()
    wait_until_free(endless)


def test_a_processor_that_fails_is_the_callers_error_and_harms_nobody_else(llm: LLM) -> None:
    def fail(ids: list[int], row: torch.Tensor) -> torch.Tensor:
        raise ValueError("mine")

    other = llm.generate_async([3], GREEDY)
    bad = SamplingParams(max_tokens=5, n=2, logits_processors=[fail])
    with pytest.raises(GenerationFailed, match="ValueError: mine"):
        llm.generate([[1], [2]], [bad, GREEDY])
    assert other.result(20).outputs[0].token_ids == expected_tokens([3], 12)
    wait_until_free(llm)


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ([999], GREEDY, "prompt"),
        ([1], SamplingParams(logit_bias={999: 1.0}), "logit_bias"),
        ([1], SamplingParams(bad_words_ids=[[1, 999]]), "bad_words_ids"),
        ([1], SamplingParams(max_tokens=100), "max_tokens"),
        ({"promt": "a"}, GREEDY, "prompt"),
    ],
)
def test_a_request_that_can_never_run_is_refused(llm: LLM, prompt: object, params: SamplingParams, param: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        llm.generate([[1], prompt], params)  # type: ignore[list-item]
    assert refused.value.param == param


def test_bad_words_never_appear(llm: LLM) -> None:
    text = llm.generate([[1, 2]], GREEDY)[0].outputs[0].text
    banned = llm.generate([[1, 2]], SamplingParams(max_tokens=12, temperature=0, bad_words=[text[2:4]]))[0].outputs[0]
    assert banned.text.startswith(text[:3])
    assert text[2:4] not in banned.text


def test_after_shutdown_nothing_runs_and_who_waits_is_told(endless: LLM) -> None:
    waiting = endless.generate_async([1], ENDLESS)
    endless.shutdown()
    endless.shutdown()
    with pytest.raises(EngineFailed, match="shut down"):
        waiting.result(20)
    with pytest.raises(EngineFailed, match="shut down"):
        endless.generate([[1]], GREEDY)


def test_an_engine_that_breaks_tells_everybody() -> None:
    programs = FakePrograms(make_card())
    with LLM.of(Engine(programs, make_tokenizer())) as llm:
        programs.fail_with = RuntimeError("index out of bounds")
        with pytest.raises(EngineFailed, match="index out of bounds"):
            llm.generate([[1], [2]], GREEDY)
        with pytest.raises(EngineFailed, match="index out of bounds"):
            llm.generate_async([1], GREEDY)


def test_its_thread_ends_when_nobody_holds_it() -> None:
    before = threading.active_count()
    llm = LLM.of(make_engine())
    llm.generate([[1]], GREEDY)
    assert threading.active_count() == before + 1
    del llm
    gc.collect()
    assert threading.active_count() == before


def ask_in_child(llm: LLM, answers: multiprocessing.Queue[str]) -> None:
    try:
        llm.generate_async([1], GREEDY)
    except EngineFailed as error:
        answers.put(str(error))


def test_a_forked_process_is_told_to_make_its_own(llm: LLM) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=ask_in_child, args=(llm, answers))
    child.start()
    assert "make one after the fork" in answers.get(timeout=20)
    child.join()
