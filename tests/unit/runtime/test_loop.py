from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
from support import engines
from support.engines import expected_tokens, make_engine

from trtx.runtime.engine import Engine
from trtx.runtime.loop import EngineThread, Stream
from trtx.runtime.owner import EngineFailed
from trtx.runtime.request import Output, SamplingParams

GREEDY = SamplingParams(max_tokens=12, temperature=0)
GREEDY_LONG = SamplingParams(max_tokens=4000, temperature=0, ignore_eos=True)


@pytest.fixture(autouse=True, params=[False, True], ids=["plain", "overlapped"])
def overlap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine of these tests has one of the two loops."""
    monkeypatch.setitem(globals(), "make_engine", partial(engines.make_engine, overlap=request.param))


@asynccontextmanager
async def running(engine: Engine, seen: list[Output] | None = None) -> AsyncIterator[EngineThread]:
    thread = EngineThread(engine, None if seen is None else seen.extend)
    thread.start()
    try:
        yield thread
    finally:
        await thread.stop()


def open_stream(thread: EngineThread, prompts: Sequence[Sequence[int]], params: SamplingParams = GREEDY) -> Stream:
    return thread.stream([thread.engine.make_request(prompt, params) for prompt in prompts])


async def read_tokens(stream: Stream) -> list[list[int]]:
    tokens: dict[int, list[int]] = {request.id: [] for request in stream.requests}
    with stream:
        async for output in stream:
            tokens[output.request.id] += output.token_ids
    return list(tokens.values())


def test_many_streams_at_once_each_get_their_own_tokens() -> None:
    async def main() -> None:
        seen: list[Output] = []
        prompts = [[n, n + 1] for n in range(20)]
        async with running(make_engine(), seen) as thread:
            found = await asyncio.gather(*(read_tokens(open_stream(thread, [prompt])) for prompt in prompts))
        expected = [expected_tokens(prompt, 12) for prompt in prompts]
        assert [tokens for (tokens,) in found] == expected
        assert len(seen) == sum(map(len, expected))
        thread.engine.check_integrity()

    asyncio.run(main())


def test_one_stream_carries_several_requests() -> None:
    async def main() -> None:
        async with running(make_engine()) as thread:
            found = await read_tokens(open_stream(thread, [[1], [2], [3]]))
        assert found == [expected_tokens([n], 12) for n in (1, 2, 3)]

    asyncio.run(main())


def test_leaving_a_stream_early_cancels_its_requests_and_frees_their_blocks() -> None:
    async def main() -> None:
        async with running(make_engine(max_seq_len=4096, num_blocks=2100)) as thread:
            with open_stream(thread, [[1], [2]], GREEDY_LONG) as stream:
                await anext(stream)
            # A later request ends only after the cancellation before it was carried out.
            await read_tokens(open_stream(thread, [[3]]))
            assert thread.engine.load_now.kv_blocks_used == 0
        thread.engine.check_integrity()
        assert thread.engine.stats.finished["cancelled"] == 2

    asyncio.run(main())


def test_a_cancelled_task_cancels_a_request_that_still_waits() -> None:
    async def main() -> None:
        long = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
        engine = make_engine(max_batch_size=1)
        async with running(engine) as thread:
            first = asyncio.create_task(read_tokens(open_stream(thread, [[1]], long)))
            second = asyncio.create_task(read_tokens(open_stream(thread, [[2]], long)))
            await asyncio.sleep(0)
            second.cancel()
            assert len((await first)[0]) == 60
            assert second.cancelled()
        engine.check_integrity()
        assert not engine.has_work

    asyncio.run(main())


def test_a_stream_that_is_never_entered_queues_nothing() -> None:
    async def main() -> None:
        engine = make_engine()
        async with running(engine) as thread:
            open_stream(thread, [[1]])
        assert not engine.has_work

    asyncio.run(main())


def test_a_slow_reader_keeps_nobody_else_waiting() -> None:
    async def main() -> None:
        async with running(make_engine()) as thread:
            with open_stream(thread, [[1]]) as slow:
                await read_tokens(open_stream(thread, [[2]]))
                await read_tokens(open_stream(thread, [[3]]))
                pieces = [output async for output in slow]
        # What came while nobody read is one piece.
        assert [list(piece.token_ids) for piece in pieces] == [expected_tokens([1], 12)]
        assert pieces[0].text == thread.engine.tokenizer.decode(pieces[0].token_ids)

    asyncio.run(main())


def test_an_engine_failure_reaches_everyone_who_waits_and_everyone_who_comes_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        engine = make_engine()
        engine._programs.fail_with = RuntimeError("index out of bounds")  # type: ignore[attr-defined]
        async with running(engine) as thread:
            assert thread.failure is None
            waiting = [read_tokens(open_stream(thread, [[n]])) for n in range(8)]
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(result, EngineFailed) for result in results)
            assert thread.failure == "the engine has failed: index out of bounds"
            with pytest.raises(EngineFailed, match="index out of bounds"), open_stream(thread, [[1]]):
                pass
        assert thread.failure == "the engine has failed: index out of bounds"

    asyncio.run(main())
    assert "the engine has failed" in caplog.text


def test_stopping_ends_open_streams_with_a_reason() -> None:
    async def main() -> None:
        thread = EngineThread(make_engine(max_seq_len=4096, num_blocks=2100))
        assert thread.failure == "the engine has not been started"
        thread.start()
        with open_stream(thread, [[1]], GREEDY_LONG) as stream:
            stopping = asyncio.create_task(thread.stop())
            with pytest.raises(EngineFailed, match="shutting down"):
                while True:
                    await anext(stream)
            await stopping
        with pytest.raises(EngineFailed, match="shutting down"), open_stream(thread, [[1]]):
            pass

    asyncio.run(main())
