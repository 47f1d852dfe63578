"""Where questions come from. A file a format; `load.py` puts them together.

Light: `datasets` is imported when a Parquet file or a hub id is read, and only then.
"""

from demopsd_dist.data.sources.items import LoadedSource, ParsedQuestion, RefusedRecord, SourceRecord
from demopsd_dist.data.sources.load import SPLITS, LoadedData, load_data, load_source, load_split, sources
from demopsd_dist.data.sources.order import order

__all__ = [
    "SPLITS",
    "LoadedData",
    "LoadedSource",
    "ParsedQuestion",
    "RefusedRecord",
    "SourceRecord",
    "load_data",
    "load_source",
    "load_split",
    "order",
    "sources",
]
