"""How much memory a system takes: high-water marks of this process, and of tensors on a GPU.

Knows Linux and CUDA. Elsewhere, and where the mark may not be set back, nothing is measured.
"""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from safelens.freed_memory import give_back_freed_memory

_PROCESS = Path("/proc/self")
Bytes = Annotated[int, Field(ge=0)] | None


class PeakMemory(BaseModel):
    """The most memory that was in use at a time.

    Attributes:
        host_bytes: Resident memory of the process: weights and caches, libraries, and what systems before it in
            the same process left unreturned. The process that decodes videos is not in it. None: not measured.
        gpu_bytes: Tensors on the GPU; None without one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host_bytes: Bytes = None
    gpu_bytes: Bytes = None

    def or_more(self, other: PeakMemory) -> PeakMemory:
        """The larger of each figure, of those that were measured."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in type(self).model_fields)
        host, gpu = (max((x for x in pair if x is not None), default=None) for pair in pairs)
        return PeakMemory(host_bytes=host, gpu_bytes=gpu)


class MemoryMeter:
    """Measures from when it is made; one at a time, since a process has one mark."""

    def __init__(self) -> None:
        gc.collect()  # models of earlier systems, which refer to themselves
        give_back_freed_memory()
        try:
            # 5 sets VmHWM to what is resident now: proc_pid_clear_refs(5)
            (_PROCESS / "clear_refs").write_text("5")
            self._marked = True
        except OSError:
            self._marked = False
        if cuda := _cuda():
            cuda.reset_peak_memory_stats()

    def read(self) -> PeakMemory:
        """The peak since then."""
        cuda = _cuda()
        return PeakMemory(
            host_bytes=_resident() if self._marked else None,
            gpu_bytes=cuda.max_memory_allocated() if cuda else None,
        )


def _resident() -> int | None:
    """The most resident memory since the mark was set, in bytes."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE)
    return None if found is None else 1024 * int(found[1])


def _cuda() -> Any:
    """PyTorch's side of CUDA where some system has used it; never loads it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
