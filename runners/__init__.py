"""Where steps run. A runner starts tasks and reports their end; it never sees a recipe."""
