"""Memory that large tensors leave stays with the process, for the next ones.

Knows glibc's allocator, which maps blocks above 32 MB anew each time and returns them to the kernel once they are
free. Each layer of a large model then has the kernel clear and map every page of its results again, which on CPUs took
a third to a half of a captioner's time.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers of the parameters (malloc.h)."""
_USUAL = 32 * 2**20
"""The largest threshold that glibc comes to by itself."""
_KEPT = 2**30
"""Blocks up to this size come from what was freed, and as much at the heap's end is not returned."""


def keep_freed_memory(keep: bool = True) -> bool:
    """Keep what large tensors leave, in this process from now on; False goes back to glibc's usual thresholds.

    What is kept is bounded by what was in use at once. Only the main thread's tensors gain: other threads' heaps hold
    no large blocks.

    Returns:
        Whether the C library knows how; others are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        threshold = _KEPT if keep else _USUAL
        return bool(mallopt(_MMAP_THRESHOLD, threshold) and mallopt(_TRIM_THRESHOLD, threshold))
    return False


def give_back_freed_memory() -> None:
    """Return to the kernel what is free now, where the C library knows how."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
