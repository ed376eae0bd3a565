"""Training of the demo model: corpus → tokenizer → a fixed number of steps → a Hugging Face model folder.

Deterministic: the same seed, Python, torch and kind of CPU give the same bytes. Two threads whatever the machine has.
Shape suffixes: B sequences, T tokens of a sequence, U = T + 1, S tokens of a whole text, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from trtx.files import write_json
from trtx.models.demo.config import EOS_TOKEN, DemoConfig, make_hf_config, training_precision
from trtx.models.demo.corpus import collect_docs
from trtx.models.demo.muon import Muon
from trtx.models.demo.network import Llama
from trtx.models.demo.tokenizer import save_tokenizer, train_tokenizer
from trtx.models.sources.base import Progress
from trtx.models.sources.transfer import saving

SUMMARY_NAME = "trtx_demo.json"
NUM_THREADS = 2
FINAL_RATE = 0.02  # of the peak learning rate
MAX_GRADIENT_NORM = 1.0
EVALUATION_LENGTH, EVALUATION_BATCH = 128, 32
STEPS_PER_LINE = 50


def train_model(demo: DemoConfig, output: Path, progress: Progress) -> None:
    """Train and save the demo model, its tokenizer, and trtx_demo.json with its bits per byte on held-out text."""
    docs = collect_docs()
    tokenizer = train_tokenizer(docs["train"], demo.vocab_size)
    train_S, valid_S = encode(tokenizer, docs["train"]), encode(tokenizer, docs["validation"])
    bytes_per_token = sum(len(doc) for doc in docs["validation"]) / len(valid_S)  # the corpus is ASCII
    print(f"corpus: {len(train_S)} training tokens, {len(valid_S)} held out, {bytes_per_token:.2f} bytes a token")
    with reproducible(demo.seed):
        model = Llama(demo)
        run_steps(model, train_S, demo, progress)
        bits_per_token = measure_bits(model, valid_S)
    summary = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "precision": training_precision(),
        "seed": demo.seed,
        "steps": demo.steps,
        "bits_per_byte": bits_per_token / bytes_per_token,
        "unigram_bits_per_byte": unigram_bits(train_S, valid_S, demo.vocab_size) / bytes_per_token,
    }
    print(f"held out: {summary['bits_per_byte']:.3f} bits a byte (unigram {summary['unigram_bits_per_byte']:.3f})")
    save_model(model, demo, output)
    save_tokenizer(tokenizer, demo, output)
    write_json(output / SUMMARY_NAME, summary)


def encode(tokenizer: Tokenizer, docs: list[str]) -> Tensor:
    """All documents as one line of tokens: <s> text </s> <s> text </s> …"""
    eos_id = tokenizer.token_to_id(EOS_TOKEN)
    return torch.tensor([token for row in tokenizer.encode_batch(docs) for token in (*row.ids, eos_id)])


def run_steps(model: Llama, train_S: Tensor, demo: DemoConfig, progress: Progress) -> None:
    """The training loop; parameters are changed in place."""
    precision: torch.dtype = getattr(torch, training_precision())
    in_layers = {name: p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("layers.")}
    others = [p for name, p in model.named_parameters() if name not in in_layers]
    muon = Muon(in_layers.values(), precision)
    adam = torch.optim.AdamW(others, lr=demo.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(demo.seed)
    for step in range(demo.steps):
        rate = rate_at(step, demo)
        window_BU = draw_batch(train_S, length_at(step, demo), demo.tokens_per_step, generator)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            logits_BTV = model(window_BU[:, :-1])
        loss = F.cross_entropy(logits_BTV.float().flatten(0, 1), window_BU[:, 1:].flatten())
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        adam.param_groups[0]["lr"] = demo.learning_rate * rate
        adam.step()
        muon.step(demo.matrix_learning_rate * rate)
        progress(step + 1, demo.steps, "steps")
        if (step + 1) % STEPS_PER_LINE == 0 or step + 1 == demo.steps:
            print(f"step {step + 1}/{demo.steps}: loss {loss.item():.3f}", flush=True)


def rate_at(step: int, demo: DemoConfig) -> float:
    """The learning rate's factor: a short linear rise, then a linear fall to FINAL_RATE."""
    return min(1.0, (step + 1) / demo.warmup_steps) * (1 - step / demo.steps) + FINAL_RATE


def length_at(step: int, demo: DemoConfig) -> int:
    return demo.max_position_embeddings if step >= demo.steps * (1 - demo.long_fraction) else demo.short_length


def draw_batch(train_S: Tensor, length: int, tokens: int, generator: torch.Generator) -> Tensor:
    """Windows at random places, [tokens / length, length + 1]."""
    starts_B1 = torch.randint(len(train_S) - length - 1, (tokens // length, 1), generator=generator)
    return train_S[starts_B1 + torch.arange(length + 1)]


@torch.no_grad()
def measure_bits(model: Llama, valid_S: Tensor) -> float:
    """Mean bits per held-out token, in windows that each stand alone."""
    count = (len(valid_S) - 1) // EVALUATION_LENGTH * EVALUATION_LENGTH
    inputs_BT, targets_BT = (x.view(-1, EVALUATION_LENGTH) for x in (valid_S[:count], valid_S[1 : count + 1]))
    nats = 0.0
    for start in range(0, len(inputs_BT), EVALUATION_BATCH):
        rows = slice(start, start + EVALUATION_BATCH)
        logits_BTV = model(inputs_BT[rows])
        nats += F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT[rows].flatten(), reduction="sum").item()
    return nats / count / math.log(2)


def unigram_bits(train_S: Tensor, valid_S: Tensor, vocab_size: int) -> float:
    """Mean bits per held-out token for a model that knows token frequencies only (one added to each count)."""
    counts_V = torch.bincount(train_S, minlength=vocab_size).double() + 1
    return -(counts_V / counts_V.sum()).log2()[valid_S].mean().item()


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seeded, deterministic, on a fixed number of threads; the process's own settings come back afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(NUM_THREADS)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)


def save_model(model: Llama, demo: DemoConfig, output: Path) -> None:
    """config.json, generation_config.json and model.safetensors (float32), as transformers names things."""
    tensors = {f"model.{name}": parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    output.mkdir(parents=True, exist_ok=True)
    with saving(output):
        save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    write_json(output / "config.json", make_hf_config(demo))
    write_json(output / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2})
