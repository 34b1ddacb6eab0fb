"""Derived bases: a base that is pruned, quantized or both before anything is trained on it."""
