"""The report of one learner rank on one step."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from demopsd_dist.data.records import TokenRecord
from demopsd_dist.run_record.digests import Digests


@dataclass
class RankReport:
    """Metrics of one rank: `sums` of all ranks add up to means over the batch's tokens; of `maxima` the largest counts;
    `distributions` hold a value for each token of the rank.
    """

    stepped: bool
    sums: dict[str, float] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    distributions: dict[str, np.ndarray] = field(default_factory=dict)
    token_records: dict[str, TokenRecord] = field(default_factory=dict)  # by rollout id
    digests: Digests = field(default_factory=dict)
