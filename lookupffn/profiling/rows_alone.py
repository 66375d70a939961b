"""Read rows at random and little else, for perf to count: python -m lookupffn.profiling.rows_alone BYTES ROW ROUNDS."""

import sys

from lookupffn.profiling.loops import loops


def main(size: int, row: int, rounds: int) -> None:
    """Some rounds of reading rows of ``row`` bytes out of ``size`` bytes on huge pages, by one thread."""
    measured = loops()
    with measured.buffer(size, True) as buffer:
        measured.rows(buffer, size, row, 1, 4, rounds=rounds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
