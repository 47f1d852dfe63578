"""Ray clusters: sessions, placement, code checks, node information and jobs."""
