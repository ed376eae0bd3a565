"""TensorRT-LLM checkpoints: config.json and rankN.safetensors, which trtllm-build makes engines of.

`plan` says what a recipe's checkpoint will be or why there can be none, `layout` which tensors a rank has. `write`
makes them of a Hugging Face folder, `read` joins them again, `check` finds what trtllm-build would refuse. Only
`write`, `read`, `pack`, `pack_rank` and `rank_file` import torch.
"""
