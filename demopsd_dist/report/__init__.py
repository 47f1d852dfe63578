"""HTML report of one run or several, in one file that needs no network, no server and no installation."""

from demopsd_dist.report.page import write_report

__all__ = ["write_report"]
