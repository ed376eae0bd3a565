"""A byte-level BPE tokenizer of a few hundred entries, in the files that transformers and tokenizers read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from trtx.files import write_json, write_text
from trtx.models.demo.config import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, SPECIAL_TOKENS, DemoConfig

# The model knows documentation, not conversations: the template only keeps speakers apart.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{{- message['role'] + ': ' + message['content'] + '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'assistant:' }}
{%- endif %}
"""


def train_tokenizer(docs: Sequence[str], vocab_size: int) -> Tokenizer:
    """Learn byte-level BPE merges; every byte has an entry, so any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(docs, trainer)
    bos_id = tokenizer.token_to_id(BOS_TOKEN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A", pair=f"{BOS_TOKEN} $A {BOS_TOKEN} $B", special_tokens=[(BOS_TOKEN, bos_id)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, demo: DemoConfig, output: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja."""
    tokens = {"bos_token": BOS_TOKEN, "eos_token": EOS_TOKEN, "pad_token": PAD_TOKEN}
    write_text(output / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_text(output / "chat_template.jinja", CHAT_TEMPLATE)
    write_json(output / "special_tokens_map.json", tokens)
    write_json(
        output / "tokenizer_config.json",
        {
            **tokens,
            "clean_up_tokenization_spaces": False,
            "model_max_length": demo.max_position_embeddings,
            # The name both transformers 4 and 5 can load.
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
