"""How long a lookup would take on a machine that one does not have, against GEMM on the same machine.

    python scripts/project_hardware.py model=small ffn=lookup hardware=xeon_8480p output=plots/
    python scripts/project_hardware.py hardware=machine.yaml threads=1 precision=int8 tokens=128
    python scripts/project_hardware.py hardware=grace runs=outputs/race output=grace.json

Names are those of configs/hardware/; a file is what scripts/profile_hardware.py writes. Prints time a token and ratio
to GEMM over hidden size, tokens, tables, rows and precision, where they break even and what binds; output=FOLDER draws
them, and all machines of configs/hardware/ in one figure. With runs=FOLDER writes the times of finished runs, which
scripts/compare_runs.py takes as --projected.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import DictConfig

from lookupffn.cli.choices import with_hardware_file
from lookupffn.cli.launch import run_main


def main(cfg: DictConfig) -> None:
    """One projection."""
    from lookupffn.cli.project_hardware import project_hardware

    project_hardware(cfg)


if __name__ == "__main__":
    run_main("project_hardware", main, with_hardware_file(sys.argv[1:]))
