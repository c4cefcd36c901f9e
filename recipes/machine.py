"""The machine that figures come from, as reports name it.

Knows the operating system and versions. Knows nothing of what was measured.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine(threads: int | None = None) -> dict[str, Any]:
    """Processor, memory and versions, and how busy it was.

    Args:
        threads: That the measured program used; None for as many as it may run on.
    """
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30),
        "threads": threads or len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def in_words(found: dict[str, Any]) -> str:
    """The same as a phrase."""
    return (
        f"{found['cores']} cores of an {found['cpu']}, {found['memory_gib']} GiB; Python {found['python']}, "
        f"torch {found['torch']}, transformers {found['transformers']}"
    )


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (Linux); 0 once it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0.0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
