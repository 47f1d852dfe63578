"""A run, or several beside each other, as one page that needs nothing else: no network, no server, no installation."""

from demopsd_dist.report.page import write_report

__all__ = ["write_report"]
