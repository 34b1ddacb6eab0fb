"""Adapters in and out: HF PEFT, AdapterHub, whole models of transformers, GGUF.

Strict in both directions. Knows no web and no archive of the service: folders in, folders out.
"""
