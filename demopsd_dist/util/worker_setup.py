"""Set-up of every Ray worker of a run, before it imports anything of the run."""

from __future__ import annotations

from demopsd_dist.util.code_caches import keep_code_caches_private
from demopsd_dist.util.die_with_parent import die_with_parent
from demopsd_dist.util.rooms import open_rooms
from demopsd_dist.util.temporary_files import remove_left_temporary_folders, use_own_temporary_folder


def set_up_worker() -> None:
    """Tie this process to its parent, let it import `workers` wherever the run was started, and place its caches of
    compiled code and its temporary files in a private folder of its node. Temporary files of workers that were killed
    are removed: where no run is started, on the other nodes of a cluster, nothing else would.

    Raises:
        ConfigError: there is no private folder on this node; or another package `workers` has been imported.
    """
    die_with_parent()
    open_rooms()
    keep_code_caches_private()
    remove_left_temporary_folders()
    use_own_temporary_folder()
