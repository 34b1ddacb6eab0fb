"""Derived bases: a base model changed before training."""
