"""The embedded default: generated science questions and a small model that can half do them."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
