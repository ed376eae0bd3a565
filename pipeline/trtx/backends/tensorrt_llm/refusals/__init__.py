"""What is refused before a GPU is touched: one module a subject, every refusal with its place, rule and fix."""
