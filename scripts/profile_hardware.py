"""Measure this machine: what lookupffn.profiling needs to say how long a feed-forward takes on it.

    python scripts/profile_hardware.py --output machine.yaml
    python scripts/profile_hardware.py --output again.yaml --compare machine.yaml

Two minutes, best with nothing else running; a warning says so if something does. The file serves as ``hardware=FILE``
of scripts/project_hardware.py, or as a name once it lies in configs/hardware/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupffn import UserError
from lookupffn.cli.launch import run_script


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="YAML", help="file to write")
    parser.add_argument("--name", help="what to call the machine (default: the processor's model name)")
    parser.add_argument("--largest-mb", type=int, help="largest working set (default: 2048)")
    parser.add_argument("--compare", type=Path, metavar="YAML", help="an earlier profile: print what differs by 10%%")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, save.

    Raises:
        UserError: no compiler, too little memory, or an output that cannot be written.
    """
    args = parse(arguments)

    from lookupffn.profiling.machine import machine_from, read_yaml
    from lookupffn.profiling.measure import measure_machine
    from lookupffn.profiling.tables import differences, machine_table
    from lookupffn.storage import write_atomically

    if not args.output.parent.is_dir() or args.output.is_dir():
        raise UserError(f"cannot write {args.output}: give a file in a folder that exists")
    earlier = machine_from(read_yaml(args.compare), str(args.compare)) if args.compare else None
    more = {} if args.largest_mb is None else {"largest": args.largest_mb << 20}
    content = measure_machine(args.name, **more)
    machine = machine_from(content, "the measured machine")
    try:
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
        write_atomically(args.output, f"# Measured by scripts/profile_hardware.py.\n{text}")
    except OSError as error:
        raise UserError(f"cannot write {args.output}: {error.strerror}") from None
    sys.stdout.write(machine_table(machine))
    counters = content["about"]["counters"]
    sys.stdout.write(f"hardware counters: {counters}\n")
    if earlier is not None:
        sys.stdout.write(differences(earlier, machine))


if __name__ == "__main__":
    run_script(main)
