"""The real base models, fetched once per checkout and shared by every test that needs them."""

from functools import cache
from pathlib import Path

from cli.setup import fetch_models

MODELS_DIR = Path(__file__).parents[1] / "data" / "models"


@cache
def fetched_models_dir() -> Path:
    """Returns the folder of the base models; fills it when `make` has not done so already."""
    fetch_models(MODELS_DIR, say=lambda _: None)
    return MODELS_DIR
