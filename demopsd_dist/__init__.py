"""DemoPSD: disagreement-modulated policy self-distillation (arXiv 2607.02502), distributed."""

__version__ = "0.1.0"
