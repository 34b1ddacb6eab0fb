"""Serving: many deltas, one frozen base, one forward."""

from peft_engine.serving.calibration import Calibration, calibrate
from peft_engine.serving.engine import Answer, Engine
from peft_engine.serving.rows import PreparedRow, Row, prepare_row
from peft_engine.serving.writing import RowWriter, Writing

__all__ = [
    "Answer",
    "Calibration",
    "Engine",
    "PreparedRow",
    "Row",
    "RowWriter",
    "Writing",
    "calibrate",
    "prepare_row",
]
