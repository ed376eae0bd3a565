"""A model that says what a test wants it to say."""

from __future__ import annotations

from support.engines import EOS_ID, VOCAB_SIZE, FakePrograms, make_card, make_tokenizer, raw_tokenizer
from tokenizers import AddedToken
from torch import Tensor, full

from trtx.runtime.chat import ChatTemplate
from trtx.runtime.engine import Engine
from trtx.runtime.tokenizer import Tokenizer

# What stands between a conversation and its answer.
ANSWER = "[assistant]"


class ScriptedPrograms(FakePrograms):
    """Answers every conversation with `script`, which may be changed, a token for each byte or special token."""

    def __init__(self, script: str, special: str | None = None) -> None:
        super().__init__(make_card(max_num_tokens=256, max_seq_len=1024), num_blocks=1025)
        self.script = script
        self.tokenizer = make_scripted_tokenizer("", special)

    def _logits(self, position: int, table: list[int]) -> Tensor:
        size = self.card.kv_cache.tokens_per_block
        context = [int(self._pool_PS[table[at // size], at % size]) for at in range(position + 1)]
        said = self.tokenizer.encode(ANSWER, add_special_tokens=False)
        script = self.tokenizer.encode(self.script, add_special_tokens=False)
        ends = [at + len(said) for at in range(len(context)) if context[at : at + len(said)] == said]
        done = len(context) - ends[-1] if ends else len(script)
        logits_V = full((VOCAB_SIZE + 1,), -9.0)
        logits_V[script[done] if done < len(script) else EOS_ID] = 9.0
        return logits_V


def make_scripted_tokenizer(template: str, special: str | None) -> Tokenizer:
    """Bytes, and perhaps one more special token; `template` goes before the messages."""
    raw = raw_tokenizer()
    if special is not None:
        raw.add_special_tokens([AddedToken(special, special=True)])
    written = make_tokenizer().chat_template
    assert written is not None
    return Tokenizer(raw, [EOS_ID], ChatTemplate(template + written.source, {"bos_token": "<s>"}))


def make_scripted_engine(script: str, template: str, special: str | None = None) -> Engine:
    """An engine that says `script`, with a chat template that begins with a text of its model's."""
    return Engine(ScriptedPrograms(script, special), make_scripted_tokenizer(template, special))
