"""MiniSci, the embedded default: generated science questions, and a small model that answers about half of them."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
