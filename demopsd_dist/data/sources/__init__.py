"""Sources of questions: a file for each format, put together by `load.py`.

Light: `datasets` is imported only when a Parquet file or a hub data set is read.
"""

from demopsd_dist.data.sources.items import LoadedSource, ParsedQuestion, RefusedRecord, SourceRecord
from demopsd_dist.data.sources.load import (
    SPLITS,
    LoadedData,
    describe_sources,
    load_data,
    load_source,
    load_split,
    set_label,
)
from demopsd_dist.data.sources.order import question_order

__all__ = [
    "SPLITS",
    "LoadedData",
    "LoadedSource",
    "ParsedQuestion",
    "RefusedRecord",
    "SourceRecord",
    "describe_sources",
    "load_data",
    "load_source",
    "load_split",
    "question_order",
    "set_label",
]
