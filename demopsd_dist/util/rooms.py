"""Location of the packages `workers` and `launch`, which the project imports by these short names.

In a checkout they lie beside `demopsd_dist`. An installed package has them in its folder `rooms/`, with configs and
locks, where no other package of these names can overwrite them.
"""

from __future__ import annotations

import sys
from importlib import import_module, invalidate_caches
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from demopsd_dist.util.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
PACKED = PACKAGE / "rooms"
IS_CHECKOUT = not PACKED.is_dir()
ROOMS = PACKAGE.parent if IS_CHECKOUT else PACKED
NAMES = ("workers", "launch")


def open_rooms() -> None:
    """Import `workers` and `launch` of this project, whatever else Python would find under these names.

    The folder is also appended to `sys.path`, for child processes that Python starts anew.

    Raises:
        ConfigError: another package of such a name has been imported before.
    """
    for name in NAMES:
        if name in sys.modules:
            _refuse_stranger(sys.modules[name], ROOMS / name)
        else:
            _load(name, ROOMS / name)
    if str(ROOMS) not in sys.path:
        sys.path.append(str(ROOMS))
        invalidate_caches()


def room_module(name: str) -> ModuleType:
    """Module of a room by its dotted name, such as `launch.train`. Raises as `open_rooms`."""
    open_rooms()
    return import_module(name)


def _load(name: str, folder: Path) -> None:
    spec = spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _refuse_stranger(module: ModuleType, folder: Path) -> None:
    if module.__file__ is None or Path(module.__file__).resolve().parent != folder:
        raise ConfigError(
            f"{module.__name__} has been imported from {module.__file__ or 'a folder without __init__.py'}, and "
            f"demopsd-dist needs its own package of that name in {folder}. Import demopsd_dist before it, or rename it."
        )
