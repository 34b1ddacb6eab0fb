"""Measurements against peers and bars; nothing here is imported by the product."""
