"""trtx: one YAML recipe into inference engines and deployment folders for a GPU fleet."""

__version__ = "0.1.0"
