"""The answering edge: one process, frozen bases, thousands of deltas in one forward."""
