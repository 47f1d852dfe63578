"""Where questions come from. A file a format; `load.py` puts them together.

Light: `datasets` is imported when a Parquet file or a hub id is read, and only then.
"""

from demopsd_dist.data.sources.items import Item, Loaded, Record, Refused
from demopsd_dist.data.sources.load import SPLITS, Data, load_data, load_source, load_split, sources
from demopsd_dist.data.sources.order import order

__all__ = [
    "SPLITS",
    "Data",
    "Item",
    "Loaded",
    "Record",
    "Refused",
    "load_data",
    "load_source",
    "load_split",
    "order",
    "sources",
]
