"""TensorRT-LLM checkpoints: config.json and rankN.safetensors, which trtllm-build makes engines of.

`layout` says which tensors a rank has, `write` makes them of a Hugging Face folder, `read` joins them again, `check`
finds what trtllm-build would refuse. `layout`, `config`, `formats`, `share`, `header` and `check` import no torch.
"""
