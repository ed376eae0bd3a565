"""Wrong recipes of TensorRT-LLM. `«` marks where the problem is expected; every case has one error, or one warning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

HOPPER = "h100"


@dataclass(frozen=True)
class Wrong:
    """A recipe with one thing that is wrong. `parts` are what the message must contain, rule and release among them."""

    name: str
    marked: str
    model: str  # Empty: nobody knows it.
    rule: str
    parts: tuple[str, ...]
    severity: Literal["error", "warning"] = "error"

    @property
    def text(self) -> str:
        return self.marked.replace("«", "")

    @property
    def mark(self) -> tuple[int, int]:
        """Line and column of the mark, from 1."""
        [(number, line)] = [(n, line) for n, line in enumerate(self.marked.split("\n"), 1) if "«" in line]
        return number, line.index("«") + 1

    @property
    def release(self) -> str:
        [found] = re.findall(r"^  release: «?(\S+)$", self.marked, re.MULTILINE)
        return str(found)

    @property
    def flow(self) -> str:
        [found] = re.findall(r"^  flow: «?(\S+)$", self.marked, re.MULTILINE)
        return str(found)


def make_recipe(
    release: str = "1.2.1",
    flow: str = "engine",
    gpu: str = HOPPER,
    variant: str = "algorithm: none",
    engine: str = "",
    target: str = "",
    source: str = "hf://owner/name",
    extra: str = "",
    container: str | None = None,
) -> str:
    """A recipe of one variant on one target, each setting on a line of its own."""
    if container is None:
        container = "" if release.lstrip("«") >= "0.20" else "  container: registry.example.com/trtllm:1\n"
    if release.lstrip("«") < "0.15" and "package:" not in extra:
        extra += "package: {emit: [triton]}\n"  # They have no server of their own.
    limits = "" if "limits:" in engine else "  limits: {max_batch_size: 8, max_num_tokens: 2048, max_seq_len: 2048}\n"
    lines = "".join(f"  {line}\n" for line in engine.split("\n") if line)
    of_target = "".join(f"    {line}\n" for line in target.split("\n") if line)
    of_variant = "".join(f"    {line}\n" for line in variant.split("\n"))
    return (
        f"schema: trtx/v1\nname: served\nmodel:\n  source: {source}\nquantization:\n  v:\n{of_variant}"
        f"engine:\n  backend: tensorrt-llm\n  release: {release}\n  flow: {flow}\n{container}{limits}{lines}"
        f"targets:\n  t:\n    gpu: {gpu}\n{of_target}{extra}"
    )


def wrong(name: str, rule: str, *parts: str, model: str = "llama-8b", warns: bool = False, **settings: str) -> Wrong:
    return Wrong(name, make_recipe(**settings), model, rule, parts, "warning" if warns else "error")


NEWS = "calibration: {dataset: hf://abisee/cnn_dailymail/3.0.0, column: article, samples: 32}"
TEXTS = "calibration: {dataset: hf://owner/texts, samples: 32}"


def quantized(algorithm: str, data: str = NEWS, more: str = "") -> str:
    return f"algorithm: {algorithm}\n{more}{data}"


FLOWS = (
    wrong("a release without tables", "", "no tables for TensorRT-LLM 1.2.0", "did you mean '1.2.1'", release="«1.2.0"),
    wrong("a release after all tables", "", "1.4.0", "there is no trtllm-build any more", "trtx probe",
          release="«1.4.0"),
    wrong("the PyTorch flow of an old release", "pytorch-flow", "0.21.0", "since 1.0.0", "flow: engine",
          release="0.21.0", flow="«pytorch"),
    wrong("the PyTorch flow of an older one", "pytorch-flow", "0.16.0", "since 1.0.0", release="0.16.0",
          flow="«pytorch"),
    wrong("plugins in the PyTorch flow", "settings-of-a-flow", "engine.plugins means nothing", "llm_options",
          flow="pytorch", engine="«plugins: {gemm_plugin: auto}"),
    wrong("flags of trtllm-build in the PyTorch flow", "settings-of-a-flow", "engine.build_options means nothing",
          flow="pytorch", engine="«build_options: {strip_plan: true}"),
    wrong("several profiles in the PyTorch flow", "settings-of-a-flow", "engine.profiles", flow="pytorch",
          engine="«profiles: true"),
    wrong("an options file in the engine flow", "settings-of-a-flow", "engine.llm_options means nothing",
          "build_options", engine="«llm_options: {stream_interval: 2}"),
    wrong("an architecture that only the other flow has", "architecture", "DeepseekV3ForCausalLM", "flow: pytorch",
          model="deepseek", source="«hf://owner/name"),
    wrong("no image of the release", "", "no image of TensorRT-LLM 0.19.0 is known", "engine.container",
          release="«0.19.0", container=""),
    wrong("an image that moves", "image-moves", "trtllm:latest is not pinned", "@sha256:",
          container="  container: «registry.example.com/trtllm:latest\n"),
    wrong("an image without a tag", "image-moves", "trtllm is not pinned",
          container="  container: «registry.example.com/trtllm\n"),
    wrong("a format that neither writer has", "converter", "neither trtx nor TensorRT-LLM 1.2.1", "fp8_block_wo",
          variant="algorithm: «fp8_block_wo"),
    wrong("a model that trtx's writer does not know", "converter", "trtx cannot write this checkpoint",
          "converter: release", model="phi3", engine="converter: «trtx"),
    wrong("expert parallelism by quantize.py", "converter", "does not divide experts over ranks", model="mixtral",
          variant=quantized("fp8"), engine="converter: «release", target="parallelism: {tensor: 4, expert: 2}"),
    wrong("excluded layers in quantize.py", "converter", "quantizes every layer but lm_head", "converter: trtx",
          variant=quantized("fp8", more="exclude: [lm_head, '*.o_proj']\n"), engine="converter: «release"),
)  # fmt: skip

FLAGS = (
    wrong("a flag that was removed", "unknown-flag", "trtllm-build of TensorRT-LLM 1.2.1 has no --auto_parallel",
          "until", "tp_size", engine="build_options: {«auto_parallel: 2}"),
    wrong("a flag from before all tables", "unknown-flag", "--max_output_len", "max_seq_len",
          engine="build_options: {«max_output_len: 128}"),
    wrong("a flag that came later", "unknown-flag", "0.16.0 has no --norm_quant_fusion", "since",
          release="0.16.0", engine="plugins: {«norm_quant_fusion: enable}"),
    wrong("a plugin that is gone", "unknown-flag", "--lookup_plugin", "leave it out", release="0.16.0",
          engine="plugins: {«lookup_plugin: auto}"),
    wrong("a switch that is gone", "unknown-flag", "--enable_xqa", "until 0.15.0", release="0.16.0",
          engine="plugins: {«enable_xqa: enable}"),
    wrong("a mistyped plugin", "unknown-flag", "--gemm_plugn", "--gemm_plugin", engine="plugins: {«gemm_plugn: auto}"),
    wrong("a flag that the checkpoint has", "stated-twice", "tp_size", "parallelism.tensor",
          engine="build_options: {«tp_size: 4}"),
    wrong("a limit as a flag", "stated-twice", "max_batch_size", "engine.limits.max_batch_size",
          engine="build_options: {«max_batch_size: 4}"),
    wrong("blocks as a flag", "stated-twice", "engine.kv_cache.tokens_per_block",
          engine="build_options: {«tokens_per_block: 64}"),
    wrong("profiles as a plugin", "stated-twice", "engine.profiles", engine="plugins: {«multiple_profiles: enable}"),
    wrong("a folder as a flag", "stated-twice", "written by trtx itself", engine="build_options: {«output_dir: /tmp}"),
    wrong("a plugin in both sections", "stated-twice", "engine.plugins and in engine.build_options",
          engine="plugins: {reduce_fusion: enable}\nbuild_options: {«reduce_fusion: enable}",
          target="parallelism: {tensor: 2}"),
    wrong("a word that a plugin does not take", "wrong-value", "--gemm_plugin of TensorRT-LLM 1.2.1 does not take int4",
          "auto", engine="plugins: {gemm_plugin: «int4}"),
    wrong("a format that a plugin did not have yet", "wrong-value", "nvfp4", "0.16.0", release="0.16.0",
          engine="plugins: {gemm_plugin: «nvfp4}"),
    wrong("a value for a switch", "wrong-value", "--strip_plan", "takes no value",
          engine="build_options: {strip_plan: «fast}"),
    wrong("a word for a number", "wrong-value", "--opt_num_tokens", "does not take many",
          engine="build_options: {opt_num_tokens: «many}"),
    wrong("a flag among plugins", "not-a-plugin", "logits_dtype", "engine.build_options.logits_dtype",
          engine="plugins: {«logits_dtype: float32}"),
    wrong("a plugin name with dashes", "", "'gemm-plugin' cannot be an option", "without dashes",
          engine="plugins: {«gemm-plugin: auto}"),
)  # fmt: skip

OPTIONS = (
    wrong("a key that no release has", "yaml-unknown-key", "no key stream_intervall", "stream_interval",
          release="1.3.0rc3", flow="pytorch", engine="llm_options: {«stream_intervall: 2}"),
    wrong("a nested key that no class has", "yaml-unknown-key", "moe_config.backends", "did you mean 'backend'",
          release="1.3.0rc3", flow="pytorch", engine="llm_options: {moe_config: {«backends: CUTLASS}}"),
    wrong("a value that a class does not take", "wrong-value", "moe_config.backend", "CUTLASS",
          release="1.3.0rc3", flow="pytorch", engine="llm_options: {moe_config: {backend: «FASTEST}}"),
    wrong("a text for a number", "wrong-value", "stream_interval", "a whole number",
          release="1.3.0rc3", flow="pytorch", engine="llm_options: {stream_interval: «often}"),
    wrong("a limit in the options file", "stated-twice", "max_batch_size", "engine.limits.max_batch_size",
          flow="pytorch", engine="llm_options: {«max_batch_size: 4}"),
    wrong("ranks in the options file", "stated-twice", "tensor_parallel_size", "parallelism.tensor",
          flow="pytorch", engine="llm_options: {«tensor_parallel_size: 4}"),
    wrong("reuse of blocks in the options file", "stated-twice", "engine.kv_cache.reuse",
          release="1.3.0rc3", flow="pytorch", engine="llm_options: {kv_cache_config: {«enable_block_reuse: false}}"),
    wrong("speculation in the options file", "stated-twice", "engine.speculative", release="1.3.0rc3", flow="pytorch",
          engine="llm_options: {«speculative_config: {decoding_type: MTP}}"),
    wrong("the model in the options file", "stated-twice", "written by trtx itself", flow="pytorch",
          engine="llm_options: {«model: /m}"),
    wrong("a build_config in the PyTorch flow", "yaml-build-config", "ignores build_config", warns=True,
          release="1.3.0rc3", flow="pytorch", engine="llm_options: {«build_config: {max_batch_size: 4}}"),
)  # fmt: skip

PRECISION = (
    wrong("FP8 on A100", "precision-gpu", "fp8 does not run on a100-sxm-80gb", "sm_80", gpu="a100",
          variant=quantized("«fp8")),
    wrong("NVFP4 on H100", "precision-gpu", "nvfp4 does not run on h100-sxm-80gb", release="1.3.0rc3",
          variant=quantized("«nvfp4")),
    wrong("NVFP4 before releases had it", "precision-gpu", "QuantAlgo of 0.16.0 has no NVFP4", release="0.16.0",
          variant=quantized("«nvfp4")),
    wrong("SmoothQuant in the PyTorch flow", "precision-gpu", "int8_sq does not run", flow="pytorch",
          variant=quantized("«int8_sq")),
    wrong("8-bit weights in the PyTorch flow", "precision-gpu", "int8_wo does not run", flow="pytorch",
          variant="algorithm: «int8_wo"),
    wrong("MXFP8, which no release has", "precision-gpu", "no format that is mxfp8", flow="pytorch",
          variant="algorithm: «mxfp8"),
    wrong("B200 with a CUDA that does not know it", "precision-gpu", "CUDA 12.6.3", "sm_100", release="0.16.0",
          gpu="«b200"),
    wrong("B300 with a CUDA that does not know it", "precision-gpu", "sm_103 needs CUDA 12.9", release="0.18.2",
          gpu="«b300"),
    wrong("8-bit weights in an engine for B200", "sm100-integer-formats", "int8_wo on b200-sxm-180gb", "nvfp4",
          gpu="b200", variant="algorithm: «int8_wo"),
    wrong("SmoothQuant in an engine for B200", "sm100-integer-formats", "int8_sq", gpu="b200",
          variant=quantized("«int8_sq")),
    wrong("an INT8 cache in an engine for B200", "sm100-integer-formats", "an INT8 KV cache on b200-sxm-180gb",
          gpu="b200", variant=f"algorithm: none\nkv_cache: «int8\n{NEWS}"),
    wrong("a plugin that B200 does not have", "sm100-plugins", "low_latency_gemm_plugin", "sm_100", gpu="b200",
          variant=quantized("fp8"), engine="plugins: {low_latency_gemm_plugin: «fp8}"),
    wrong("an INT8 cache in the PyTorch flow", "kv-format", "no INT8 KV cache", "fp8", flow="pytorch",
          variant=f"algorithm: none\nkv_cache: «int8\n{NEWS}"),
    wrong("an FP8 cache in an engine for A100", "kv-format", "no FP8 KV cache", "sm_89", gpu="a100",
          variant=f"algorithm: none\nkv_cache: «fp8\n{NEWS}"),
    wrong("a format that the documents do not have for a model", "precision-model", "MixtralForCausalLM with int8_sq",
          model="mixtral", variant=quantized("«int8_sq"), target="parallelism: {tensor: 4}"),
    wrong("DeepSeek's own FP8 on A100", "precision-gpu", "fp8_block_wo does not run on a100-sxm-80gb", model="deepseek",
          release="1.3.0rc3", flow="pytorch", gpu="«a100", target="parallelism: {tensor: 16, expert: 16}"),
)  # fmt: skip

PARALLEL = (
    wrong("heads over ranks", "heads-tp", "32 attention heads cannot be divided by tensor parallelism 3",
          "1, 2, 4, 8, 16, 32", target="parallelism: {tensor: «3}"),
    wrong("heads over ranks in the PyTorch flow", "heads-tp", "28 attention heads", model="qwen2", flow="pytorch",
          release="1.3.0rc3", target="parallelism: {tensor: «8}"),
    wrong("key-value heads that cannot be duplicated", "kv-heads-tp", "4 key-value heads", model="qwen2",
          target="parallelism: {tensor: «14, gpus_per_node: 14}"),
    wrong("experts of a dense model", "experts", "LlamaForCausalLM has no experts", "remove it",
          target="parallelism: {tensor: 4, «expert: 2}"),
    wrong("groups of experts that ranks do not make", "moe-world-size", "4 tensor ranks", "8 groups", model="mixtral",
          target="parallelism: {tensor: 4, expert: «8}"),
    wrong("experts that groups do not share", "experts", "8 experts cannot be divided into 16 groups", model="mixtral",
          target="parallelism: {tensor: 16, expert: «16}"),
    wrong("more pipeline ranks than layers", "layers", "32 layers", "33 pipeline ranks",
          target="parallelism: {pipeline: «33, gpus_per_node: 33}"),
    wrong("context parallelism before checkpoints had it", "context-parallel", "0.15.0", "since 0.16.0",
          release="0.15.0", target="parallelism: {context: «2}"),
    wrong("ranks that nodes do not share", "world-size", "9 ranks cannot be spread evenly over 2 nodes",
          target="parallelism: {tensor: «1, pipeline: 9}"),
    wrong("a benchmark over nodes", "benchmark-nodes", "16 ranks are more than the 8 GPUs", "leave the benchmark out",
          target="parallelism: {tensor: «8, pipeline: 2}",
          extra="benchmark: {workloads: {chat: {input_tokens: 8, output_tokens: 8, concurrency: [1]}}}\n"),
    wrong("fewer GPUs than ranks", "world-size", "2 GPUs of a node", "4 ranks need 4",
          target="parallelism: {tensor: 4}\njob: {gpus: «'h100:2'}"),
    wrong("a padded vocabulary", "vocab-tp", "32001 is padded to 32002", model="odd-llama", warns=True,
          target="parallelism: {tensor: «2}"),
)  # fmt: skip

LIMITS = (
    wrong("a prompt longer than a sequence", "max-input-len", "goes on with 2048", warns=True,
          engine="limits: {max_batch_size: 8, max_num_tokens: 2048, max_seq_len: 2048, max_input_len: «4096}"),
    wrong("a sequence longer than the model", "max-seq-len", "32768 positions", model="mixtral", warns=True,
          engine="limits: {max_batch_size: 8, max_num_tokens: 2048, max_seq_len: «65536}",
          target="parallelism: {tensor: 4}"),
    wrong("more tokens than a batch has", "max-num-tokens", "goes on with 1024", warns=True,
          engine="limits: {max_batch_size: 1, max_num_tokens: «2048, max_seq_len: 1024}"),
    wrong("fewer tokens than a block", "max-num-tokens", "a block of 32 tokens", warns=True,
          engine="limits: {max_batch_size: 8, max_num_tokens: «16, max_seq_len: 2048}"),
    wrong("very many tokens", "max-num-tokens-large", "more than 16384", warns=True,
          engine="limits: {max_batch_size: 64, max_num_tokens: «32768, max_seq_len: 2048}"),
    wrong("an optimum beside several profiles", "opt-num-tokens-profiles", "opt_num_tokens", "profiles: false",
          engine="profiles: true\nbuild_options: {«opt_num_tokens: 64}"),
    wrong("an optimum beside a preset with profiles", "opt-num-tokens-profiles", "the preset throughput",
          engine="preset: throughput\nbuild_options: {«opt_num_tokens: 64}"),
    wrong("an optimum above the maximum", "opt-num-tokens", "4096 is more than max_num_tokens 2048",
          engine="build_options: {opt_num_tokens: «4096}"),
    wrong("too few tokens for guesses", "speculative-num-tokens", "(max_draft_len + 1) = 72",
          engine="limits: {max_batch_size: 8, max_num_tokens: «64, max_seq_len: 2048}\n"
          "speculative: {mode: lookahead, max_draft_len: 8}"),
    wrong("too large a batch for EAGLE", "eagle-limits", "EAGLE takes a max_batch_size of 512", model="",
          engine="limits: {max_batch_size: «1024, max_num_tokens: 8192, max_seq_len: 2048}\n"
          "speculative: {mode: eagle, max_draft_len: 4, draft: hf://a/b}"),
    wrong("too long guesses for EAGLE", "eagle-limits", "EAGLE takes a max_draft_len of 256", model="",
          engine="limits: {max_batch_size: 4, max_num_tokens: 8192, max_seq_len: 2048}\n"
          "speculative: {mode: eagle, max_draft_len: «300, draft: hf://a/b}"),
)  # fmt: skip

OVERRIDES = (
    wrong("streamingllm", "streamingllm", "refuses streamingllm", engine="plugins: {streamingllm: «enable}"),
    wrong("Mixtral's scatter for Llama", "pp-reduce-scatter", "for Mixtral only",
          engine="plugins: {pp_reduce_scatter: «enable}"),
    wrong("a plugin of FP8 without it", "swiglu-plugins", "for FP8 only",
          engine="plugins: {gemm_swiglu_plugin: «fp8}"),
    wrong("a plugin without the MLP it needs", "swiglu-plugins", "needs use_fused_mlp", variant=quantized("fp8"),
          engine="plugins: {use_fused_mlp: disable, gemm_swiglu_plugin: «fp8}"),
    wrong("reuse without paged attention", "paged-fmha", "reuse and chunked_prefill",
          engine="plugins: {use_paged_context_fmha: «disable}"),
    wrong("FP8 attention on A100", "fp8-fmha-sm", "will be switched off", "sm_80", gpu="a100", warns=True,
          engine="plugins: {«use_fp8_context_fmha: enable}"),
    wrong("paged attention on an INT8 cache", "paged-fmha-int8-kv", "the KV cache is INT8", warns=True,
          variant=f"algorithm: none\nkv_cache: int8\n{NEWS}", engine="plugins: {«use_paged_context_fmha: enable}"),
    wrong("a fused MLP in INT4", "fused-mlp", "the variant is int4_awq", warns=True, variant=quantized("int4_awq"),
          engine="plugins: {«use_fused_mlp: enable}"),
    wrong("fusion with one rank", "reduce-fusion", "tensor parallelism is 1", warns=True,
          engine="plugins: {«reduce_fusion: enable}"),
    wrong("fusion for Mixtral", "reduce-fusion", "this is MixtralForCausalLM", warns=True, model="mixtral",
          engine="plugins: {«reduce_fusion: enable}", target="parallelism: {tensor: 4}"),
    wrong("buffers without fusion", "user-buffer", "reduce_fusion is not on", warns=True,
          engine="plugins: {«user_buffer: enable}"),
    wrong("fused norms without NVFP4", "norm-quant-fusion", "the variant is none", warns=True,
          engine="plugins: {«norm_quant_fusion: enable}"),
    wrong("logits as a flag of a build", "generation-logits", "a flag of the runtime", warns=True,
          engine="build_options: {«gather_generation_logits: true}"),
)  # fmt: skip

MORE = (
    wrong("prediction heads in an engine", "speculation-flow", "no speculative decoding by mtp", "flow: pytorch",
          engine="speculative: {mode: «mtp}"),
    wrong("lookahead in the PyTorch flow", "speculation-flow", "lookahead", "flow: engine", flow="pytorch",
          release="1.3.0rc3", engine="speculative: {mode: «lookahead}"),
    wrong("EAGLE before releases had it", "speculation-release", "0.14.0", "eagle", release="0.14.0",
          engine="speculative: {mode: «eagle, draft: hf://a/b}"),
    wrong("heads that no checkpoint here has", "speculation-heads", "medusa needs heads", "eagle3",
          engine="speculative: {mode: «medusa, draft: hf://a/b}"),
    wrong("a server before there was one", "server", "0.14.0 has no trtllm-serve", "emit: [triton]", release="0.14.0",
          extra="package:\n  emit: «[compose]\n"),
    wrong("a Triton image that nobody knows", "triton-image", "no Triton image with TensorRT-LLM 1.3.0rc3", warns=True,
          release="1.3.0rc3", extra="package:\n  emit: «[compose, triton]\n"),
    wrong("guesses without a draft", "speculation-draft", "has no draft", "draft: hf://owner/name",
          engine="«speculative: {mode: draft-target}"),
    wrong("a draft that nobody asks", "speculation-draft", "ngram takes no draft", flow="pytorch", release="1.3.0rc3",
          engine="speculative: {mode: ngram, «draft: hf://a/b}"),
    wrong("prediction heads that the model lacks", "speculation-model", "no layers for multi-token prediction",
          flow="pytorch", release="1.3.0rc3", engine="speculative: {mode: «mtp}"),
    wrong("a module that adapters do not know", "lora-modules", "no module attn_qq", "attn_q",
          engine="lora: {target_modules: [attn_q, «attn_qq]}"),
    wrong("a 70B model on one GPU", "gpu-memory", "a rank needs", "70.6B parameters", "parallelism.tensor: 2",
          model="llama-70b", gpu="«h100"),
    wrong("a long sequence on a small GPU", "gpu-memory", "KV cache 16.0 GiB", gpu="«l4-24gb",
          engine="limits: {max_batch_size: 8, max_num_tokens: 8192, max_seq_len: 131072}"),
    wrong("quantize.py with too few GPUs", "quantizing-gpu-memory", "197.1 GiB", "210 GB for 70B", "converter: trtx",
          model="llama-70b", variant=quantized("«fp8"), engine="converter: release",
          target="parallelism: {tensor: 2}"),
    wrong("texts that an old quantize.py may not read", "calibration-data", "may not read hf://owner/texts",
          "cnn_dailymail", variant="algorithm: fp8\ncalibration: {dataset: «hf://owner/texts}",
          engine="converter: release"),
    wrong("more rows than AWQ takes", "awq-calibration", "32 of the 512 samples", warns=True,
          variant="algorithm: int4_awq\ncalibration: {dataset: hf://abisee/cnn_dailymail/3.0.0, samples: «512}",
          engine="converter: release"),
    wrong("experts that trtx cannot quantize", "quantizer", "trtx cannot quantize this model", "algorithm: none",
          model="mixtral", flow="pytorch", release="1.3.0rc3", variant=quantized("«w4a8_awq"),
          target="parallelism: {tensor: 4}"),
)  # fmt: skip

DOUBTS = (
    wrong("INT4 with FP8 activations on A100", "w4a8-sm", "no kernel for INT4 weights with FP8 activations", "int4_awq",
          gpu="a100", variant=quantized("«w4a8_awq")),
    wrong("groups that ranks cut in two", "groups", "groups of 128", "intermediate_size has 448",
          variant=quantized("«int4_awq"), target="parallelism: {tensor: 32}"),
    wrong("a deprecated flag", "deprecated-flag", "gather_generation_logits is deprecated", warns=True,
          engine="build_options: {«gather_generation_logits: true}"),
    wrong("a key of an options file that is known of another release", "flag-not-established", "enable_attention_dp",
          "trtx probe", warns=True, flow="pytorch", engine="llm_options: {«enable_attention_dp: true}"),
    wrong("a module that may have come later", "flag-not-established", "mlp_gate_up", warns=True,
          engine="lora: {target_modules: [«mlp_gate_up]}"),
    wrong("adapters beside guesses", "lora-speculation", "is not documented", warns=True,
          engine="speculative: {mode: lookahead}\n«lora: {max_rank: 8}"),
    wrong("adapters on 4-bit weights", "lora-format", "int4_awq weights", warns=True, flow="pytorch",
          variant=quantized("int4_awq"), engine="«lora: {max_rank: 8}"),
    wrong("a model that a derived table may have", "architecture-not-established", "MixtralForCausalLM", "trtx probe",
          warns=True, model="mixtral", release="«1.1.0", flow="pytorch", target="parallelism: {tensor: 4}"),
    wrong("longer sequences with guesses", "speculative-seq-len", "2048 becomes 2052", warns=True,
          engine="«speculative: {mode: lookahead}"),
    wrong("columns of experts that ranks cannot share", "experts", "the 14340 columns", model="odd-mixtral",
          target="parallelism: {tensor: «8}"),
)  # fmt: skip

BACKENDS = (
    wrong("a CPU", "", "TensorRT-LLM does not run on cpu", "an NVIDIA GPU", gpu="«cpu"),
    wrong("a fixed size of the cache", "", "engine.kv_cache.size means nothing", "memory_fraction",
          engine="kv_cache: {«size: 8GiB}"),
    wrong("an image of Triton", "", "package.triton_base means nothing", "remove it",
          extra="package: {emit: [triton], «triton_base: 'registry.example.com/mine:1'}\n"),
    wrong("a base image", "", "package.base means nothing", "engine.container",
          extra="package: {«base: 'docker.io/library/python:3.12'}\n"),
    wrong("a mode that does not exist", "", "speculative.mode cannot be", "did you mean 'eagle'",
          engine="speculative: {mode: «eagel}"),
    wrong("a preset that does not exist", "", "engine.preset cannot be", "throughput", engine="preset: «throuput"),
)  # fmt: skip

CASES = (
    *FLOWS,
    *FLAGS,
    *OPTIONS,
    *PRECISION,
    *PARALLEL,
    *LIMITS,
    *OVERRIDES,
    *MORE,
    *DOUBTS,
    *BACKENDS,
)
