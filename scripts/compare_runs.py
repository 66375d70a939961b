"""Compare finished runs: `python scripts/compare_runs.py outputs/race`; --help says the rest (lookupffn-compare)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupffn.cli.compare import main

if __name__ == "__main__":
    main()
