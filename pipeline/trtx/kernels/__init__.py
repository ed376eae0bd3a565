"""Native kernels of an engine: C++ sources (cpp/), how they are built (build), the operators as torch sees them (ops).

`build` imports no torch; `ops` and `reference` do.
"""
