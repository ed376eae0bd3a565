"""TensorRT-LLM: what each release's tools accept, and how a recipe becomes their command lines. Imports no torch."""
