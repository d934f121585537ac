"""Content of any size for tests of transfers: made as it is sent, and no megabyte of it is like another."""

import random
import sys

UNIT = random.Random(1).randbytes(1 << 20)
GROWTH_BYTES = 32 << 20  # what a process may take for a file of any size


def size_asked(default):
    """--gigabytes N of the command line, in bytes; it is taken from there."""
    if "--gigabytes" not in sys.argv:
        return default
    at = sys.argv.index("--gigabytes")
    value = float(sys.argv[at + 1])
    del sys.argv[at:at + 2]
    return int(value * (1 << 30))


def block(number):
    """The megabyte of this number of the file."""
    return b"%08d" % number + UNIT[8:]


def content(first, end):
    """Bytes first..end of the file, in parts."""
    while first < end:
        number, skip = divmod(first, len(UNIT))
        part = block(number)[skip:skip + end - first]
        first += len(part)
        yield part
