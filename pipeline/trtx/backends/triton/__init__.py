"""Model repositories of Triton Inference Server: what every backend's repository is made of. Imports no torch."""
