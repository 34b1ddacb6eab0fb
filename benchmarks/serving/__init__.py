"""Benchmarks of answering: one file a bar; ``docs/serving.md`` says what came of them."""
