"""Read rows at random and nothing else, for perf to count: python -m lookupffn.profiling.rows_alone BYTES ROW ROWS."""

import sys

from lookupffn.profiling.loops import loops


def main(size: int, row: int, rows: int) -> None:
    """Reads at least ``rows`` rows of ``row`` bytes out of ``size`` bytes on huge pages."""
    measured = loops()
    with measured.buffer(size, True) as buffer:
        done = 0
        while done < rows:
            # two attempts at least, of 22 rounds
            measured.rows(buffer, size, row, 1, 4)
            done += 2 * 22 * max(2048, min(32768, (4 << 20) // row))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
