"""Models, checkpoints and engines of benchmarks/runtime.py, each made once and kept in a folder.

Names have a digest of what their content depends on: the model, the format, the limits, and the sources of trtx that
make it. So a folder serves from one run to the next until one of these changes.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

import trtx
from trtx.backends.inductor.build import build, compiler_version, find_compiler, find_namespace
from trtx.backends.inductor.convert import convert
from trtx.backends.inductor.spec import EngineSpec, find_isa
from trtx.files import canonical_json, sha256_bytes, sha256_file, write_json
from trtx.kernels.build import LibraryJob, build_library, make_namespace
from trtx.models.demo.config import DemoConfig, model_identity
from trtx.models.demo.corpus import collect_docs
from trtx.models.demo.train import train_model
from trtx.models.formats import QuantFormat
from trtx.models.weights_config import load_weights_config
from trtx.quant.modelopt import quantize_checkpoint
from trtx.runtime.card import Limits, Rank, load_card

SOURCES = Path(trtx.__file__).parent
# What decides the content of a checkpoint, of weights, and of a program.
OF_CHECKPOINTS = ("quant/modelopt*.py", "quant/perplexity.py", "quant/block_rounding.py", "quant/rounding.py")
OF_WEIGHTS = ("models/layout.py", "models/linear_layout.py", "quant/pack*.py", "backends/inductor/convert.py")
OF_PROGRAMS = (
    *(
        "models/*.py",
        "models/architectures/*.py",
        "quant/linear.py",
        "quant/experts.py",
        "quant/rounding.py",
        "kernels/*.py",
    ),
    *("backends/inductor/compile.py", "backends/inductor/module.py", "backends/inductor/build.py"),
)

# What a recipe's target `cpu` is compiled for; the kernel library takes what the processor has beyond it.
ARCH = "x86-64-v3"
TOKENS_PER_BLOCK = 16
ModelName = Literal["demo", "large", "mixture"]
LIMITS: dict[ModelName, Limits] = {
    "demo": Limits(max_batch_size=8, max_num_tokens=512, max_seq_len=256),  # those of recipes/quickstart.yaml
    "large": Limits(max_batch_size=32, max_num_tokens=1024, max_seq_len=2304),
    "mixture": Limits(max_batch_size=16, max_num_tokens=1024, max_seq_len=1024),
}
# The 290 million parameters: a Llama of random numbers.
LARGE = {
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# A Mixtral of random numbers: 330 million parameters, 100 million of which a token meets.
MIXTURE = {
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SEED = 0


@dataclass(frozen=True)
class Kind:
    """An engine: a model in a number format. `attention` is the form that its program is compiled with."""

    model: ModelName
    algorithm: str = "none"
    dtype: str = "bfloat16"
    kv_cache: str = "auto"
    attention: str = "native"
    # Tokens of the demo model's text on which perplexity is measured.
    heldout: int = 16384

    @property
    def name(self) -> str:
        parts = (self.model, self.algorithm, self.dtype, self.kv_cache, self.attention)
        return "-".join(part for part in parts if part not in ("auto", "native"))


@dataclass(frozen=True)
class Built:
    """Where an engine's program and its weights are, and what building the program took."""

    kind: Kind
    engine: Path
    weights: Path
    checkpoint: Path
    seconds: float

    @property
    def num_programs(self) -> int:
        return len(load_card(self.engine).programs)

    @property
    def program_bytes(self) -> int:
        return sum((self.engine / program.path).stat().st_size for program in load_card(self.engine).programs.values())


@dataclass
class Shop:
    """Makes things in `folder` where they are not there yet; engines in the background, two at a time."""

    folder: Path
    say: Callable[[str], None]
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2))

    def model(self, name: ModelName, dtype: str = "") -> Path:
        """A Hugging Face model folder. `dtype` is for the demo model, which is trained and stored in float32."""
        if name == "demo":
            facts: Any = model_identity(DemoConfig())
            trained = self._once(name, facts, lambda out: train_model(DemoConfig(), out, _no_progress))
            if dtype in ("", "float32"):
                return trained
            return self._once(f"{name}-{dtype}", [trained.name, dtype], lambda out: cast_model(trained, dtype, out))
        sizes, make = {"large": (LARGE, make_llama), "mixture": (MIXTURE, make_mixtral)}[name]
        return self._once(name, [sizes, SEED, torch.__version__], lambda out: write_random_model(make, out))

    def engines(self, kinds: Iterable[Kind]) -> dict[Kind, Built]:
        """All of them, ready."""
        waiting: dict[Kind, tuple[Path, Path, Future[Path]]] = {}
        for kind in dict.fromkeys(kinds):
            checkpoint = self._checkpoint(kind)
            weights = self._weights(kind, checkpoint)
            waiting[kind] = checkpoint, weights, self._pool.submit(self._engine, kind, weights)
        found = {}
        for kind, (checkpoint, weights, future) in waiting.items():
            engine = future.result()
            seconds = json.loads((engine / "built.json").read_bytes())["seconds"]
            found[kind] = Built(kind, engine, weights, checkpoint, seconds)
        return found

    def kernel_library(self) -> tuple[float, int]:
        """Seconds that the kernel library takes to build in two processes, and its size in bytes."""
        compiler, march = find_compiler(), find_isa(ARCH).march
        namespace = make_namespace(march, compiler_version(compiler))
        folder = self._once("kernels", namespace, lambda out: build_kernels(march, namespace, str(compiler), out))
        built = json.loads((folder / "built.json").read_bytes())
        return built["seconds"], built["bytes"]

    def ready_folder(self, built: Built, folder: Path) -> Path:
        """An engine folder with its weights inside, as `trtx serve` wants it, made of links."""
        folder.mkdir(parents=True)
        for path in built.engine.iterdir():
            (folder / path.name).symlink_to(path)
        (folder / "weights").symlink_to(built.weights)
        return folder

    def _checkpoint(self, kind: Kind) -> Path:
        # Of the demo model in the engine's own dtype, so that ModelOpt measures in it, too.
        model = self.model(kind.model, kind.dtype)
        if kind.model != "demo" and kind.algorithm == "none":
            return model
        quantization = QuantFormat(algorithm=kind.algorithm, kv_cache=kind.kv_cache)
        facts = [model.name, quantization.model_dump(), kind.heldout, digest_sources(OF_CHECKPOINTS)]
        name = f"checkpoint-{kind.model}-{kind.algorithm}-{kind.kv_cache}-{kind.dtype}"
        return self._once(
            name, facts, lambda out: calibrate(model, out, quantization, 0 if kind.model != "demo" else kind.heldout)
        )

    def _weights(self, kind: Kind, checkpoint: Path) -> Path:
        facts = [checkpoint.name, kind.dtype, digest_sources(OF_WEIGHTS)]
        name = f"weights-{kind.model}-{kind.algorithm}-{kind.kv_cache}-{kind.dtype}"
        return self._once(name, facts, lambda out: convert(checkpoint, out, kind.dtype, 1, 1, _no_progress))

    def _engine(self, kind: Kind, weights: Path) -> Path:
        spec = self._spec(kind, weights)
        namespace = find_namespace(spec, find_compiler())
        facts = [spec.model_dump(mode="json"), namespace, digest_sources(OF_PROGRAMS)]
        return self._once(f"engine-{kind.name}", facts, lambda out: self._build(kind, spec, out))

    def _spec(self, kind: Kind, weights: Path) -> EngineSpec:
        config = load_weights_config(weights)
        return EngineSpec(
            model=config.model,
            quantization=config.quantization,
            dtype=kind.dtype,
            limits=LIMITS[kind.model],
            tokens_per_block=TOKENS_PER_BLOCK,
            rank=Rank(),
            arch=ARCH,
            attention=kind.attention,
        )

    def _build(self, kind: Kind, spec: EngineSpec, output: Path) -> None:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=self.folder) as work:
            build(spec, output, Path(work), lambda text: None)
        write_json(output / "built.json", {"kind": asdict(kind), "seconds": time.perf_counter() - began})

    def _once(self, name: str, facts: Any, make: Callable[[Path], object]) -> Path:
        target = self.folder / f"{name}-{sha256_bytes(canonical_json(facts))[:12]}"
        if not target.is_dir():
            began = time.perf_counter()
            staged = Path(tempfile.mkdtemp(dir=self.folder)) / "made"
            try:
                staged.mkdir()
                make(staged)
                staged.rename(target)
            finally:
                shutil.rmtree(staged.parent)
            self.say(f"made {name} in {time.perf_counter() - began:.0f} s")
        return target


def make_llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**LARGE))


def make_mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**MIXTURE))


def write_random_model(make: Callable[[], PreTrainedModel], folder: Path) -> None:
    """A model of random bfloat16 numbers, with a tokenizer whose every token is one or two bytes."""
    torch.manual_seed(SEED)
    model = make().to(torch.bfloat16)
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>"]
    pairs = [(a, b) for a in letters for b in letters][: model.config.vocab_size - len(letters) - len(special)]
    names = [*special, *letters, *(a + b for a, b in pairs)]
    tokenizer = Tokenizer(models.BPE({name: place for place, name in enumerate(names)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    write_json(folder / "tokenizer_config.json", facts)


def cast_model(trained: Path, dtype: str, folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(trained, dtype=getattr(torch, dtype), local_files_only=True)
    model.save_pretrained(folder)
    for path in trained.iterdir():
        if not (folder / path.name).exists() and path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)


def calibrate(model: Path, output: Path, quantization: QuantFormat, heldout: int) -> None:
    """Quantize with ModelOpt, as a recipe does; with as little text as a random model needs where `heldout` is 0.

    Otherwise the perplexity is measured on that many tokens: of text that was held out, then of what was not.
    """
    docs = collect_docs()
    num_rows, length = (64, 128) if heldout else (4, 64)
    rest = _some([*docs["validation"], *docs["train"][num_rows:]], 3 * heldout) if heldout else docs["validation"][:1]
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        for split, rows in (("calibration", docs["train"][:num_rows]), ("heldout", rest)):
            (data / f"{split}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        quantize_checkpoint(
            *(model, data, output, quantization),
            max_length=length,
            batch_size=16,
            seed=SEED,
            say=lambda text: None,
            progress=_no_progress,
            max_heldout_tokens=heldout or length,
        )


def _some(rows: list[str], num_bytes: int) -> list[str]:
    """The first rows that have so many bytes together."""
    ends = itertools.accumulate(len(row.encode()) for row in rows)
    return rows[: 1 + sum(end < num_bytes for end in ends)]


def build_kernels(march: str, namespace: str, compiler: str, output: Path) -> None:
    """Build the library from nothing, and write down how long it took."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        library = output / "kernels.so"
        job = LibraryJob(
            march=march,
            namespace=namespace,
            compiler=compiler,
            work=work,
            library=str(library),
            shelf=str(Path(work) / "shelf"),
            processes=2,
        )
        build_library(job)
    facts = {"seconds": time.perf_counter() - began, "bytes": library.stat().st_size}
    write_json(output / "built.json", facts)


def digest_sources(patterns: Iterable[str]) -> str:
    """One digest of all sources of trtx that match."""
    paths = sorted({path for pattern in patterns for path in SOURCES.glob(pattern)})
    return sha256_bytes(canonical_json({str(path.relative_to(SOURCES)): sha256_file(path) for path in paths}))


def _no_progress(done: int, total: int, unit: str) -> None:
    pass
