"""Weights, and activations, in fewer bits: modules that everything else takes for a linear."""
