"""Keep freed memory in the process: glibc gives every large tensor back to the system, to be zeroed again next time."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Let malloc reuse large blocks instead of mapping them anew; returns whether it took effect.

    On a CPU most of a small step can be page faults of activations that are mapped, zeroed, and unmapped at every
    step. Peak memory is unchanged; what was freed is just not returned before the process ends. Only glibc has it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False  # another C library
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * 2**20))
    return all(mallopt(key, value) == 1 for key, value in settings)
