"""Prints the packages of the embedded corpora (lookupffn/data/corpus/packages.py) with their versions and digests.

python scripts/pin_packages.py                       # as installed: the new PINNED
python scripts/pin_packages.py --wheels folder       # compares wheels, of other platforms say, with PINNED
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    from lookupffn.data.corpus import packages


def from_wheel(path: Path) -> packages.Package:
    """A package as its wheel holds it."""
    from lookupffn.data.corpus import packages

    root = zipfile.Path(path)
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if packages.is_source(name))
    name, version = path.name.split("-")[:2]
    return packages.Package(name, version.split("+")[0], {entry: root / entry for entry in names})


def main() -> int:
    """Returns the exit status: 1 where a wheel is not what PINNED says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder of wheels to compare")
    arguments = parser.parse_args()

    from lookupffn.data.corpus import packages

    if arguments.wheels is None:
        for name in packages.PINNED:
            package = packages.installed(name)
            if package is None:
                sys.exit(f"{name} is not installed")
            print(f'    "{name}": ("{package.version}", "{package.digest()}"),')  # noqa: T201
        return 0
    pinned = {name.lower().replace("-", "_"): pin for name, pin in packages.PINNED.items()}
    different = 0
    for path in sorted(arguments.wheels.glob("*.whl")):
        package = from_wheel(path)
        same = (package.version, package.digest()) == pinned.get(package.name.lower().replace("-", "_"))
        different += not same
        print(f"{path.name}: {'as pinned' if same else 'NOT as pinned'}")  # noqa: T201
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
