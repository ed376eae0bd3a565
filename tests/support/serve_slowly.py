"""A server process with an engine whose steps take a while: python -m support.serve_slowly DRAIN_SECONDS"""

from __future__ import annotations

import sys
import threading
from typing import Any

from support.engines import FakePrograms, make_card, make_tokenizer

from trtx.runtime.engine import Engine
from trtx.serve.app import create_app
from trtx.serve.main import bind, run_app, url_of

STEP_S = 0.01


class SlowPrograms(FakePrograms):
    def step(self, *tensors: Any) -> Any:
        threading.Event().wait(STEP_S)
        return super().step(*tensors)


def main() -> None:
    listener = bind("127.0.0.1", 0)
    card = make_card(max_seq_len=8192)
    app = create_app(Engine(SlowPrograms(card, num_blocks=4096), make_tokenizer()), model_name="slow")
    run_app(app, listener, drain_s=float(sys.argv[1]), on_ready=lambda: print(url_of(listener), flush=True))
    print("stopped", flush=True)


if __name__ == "__main__":
    main()
