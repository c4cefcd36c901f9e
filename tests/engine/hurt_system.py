"""A system whose process dies on some videos, and that takes its time."""

import os
import signal
import time
from dataclasses import dataclass

from safelens.engine.system import System


@dataclass(frozen=True)
class HurtSystem(System):
    """Kills its process on a video whose name begins with `poison`; waits before each of the others."""

    wait_s: float = 0.0

    def load(self, *, deliberate=True):
        lens = super().load(deliberate=deliberate)
        decode = lens.decode

        def hurt(path):
            if os.path.basename(path).startswith("poison"):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.wait_s)
            return decode(path)

        lens.decode = hurt
        return lens
