"""Parameter-efficient fine-tuning on shared, frozen base models.

Stands alone: no web, no SQL, no broker, no settings. Importing the package loads no torch, so
that an API process may use ``peft_engine.configs`` and ``peft_engine.records`` on their own.
"""
