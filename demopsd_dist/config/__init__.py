"""One tree of settings, read from YAML and checked. Nothing heavy is imported, so a wrong setting costs a second."""

from demopsd_dist.config.checks import longest_sequence_tokens
from demopsd_dist.config.reading import load, to_yaml
from demopsd_dist.config.tree import (
    MINISCI,
    SPLIT,
    Aggregation,
    Config,
    DataConfig,
    Divergence,
    Duplicates,
    FieldNames,
    Format,
    Gate,
    Method,
    Precision,
    Variant,
    Weights,
)

__all__ = [
    "MINISCI",
    "SPLIT",
    "Aggregation",
    "Config",
    "DataConfig",
    "Divergence",
    "Duplicates",
    "FieldNames",
    "Format",
    "Gate",
    "Method",
    "Precision",
    "Variant",
    "Weights",
    "load",
    "longest_sequence_tokens",
    "to_yaml",
]
