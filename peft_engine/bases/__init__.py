"""Frozen base models: where they come from, what identifies them, how text becomes tokens."""
