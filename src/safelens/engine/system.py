"""How each process of an engine builds its own `SafeLens`.

Knows the arguments, which travel to other machines. Loads nothing until it is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safelens.cascade import SafeLens


@dataclass(frozen=True)
class System:
    """A bundle, or a model in place of one.

    Attributes:
        source: name, directory or hub id; a directory must be there on every machine.
        zero_shot: the source is a model.
        options: of `SafeLens.load` or `SafeLens.zero_shot`.
    """

    source: str
    zero_shot: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def load(self, *, deliberate: bool = True) -> SafeLens:
        """Build it; `deliberate=False` leaves S2 out.

        Raises:
            Exception: as `SafeLens.load` and `SafeLens.zero_shot`.
        """
        from transformers.utils import logging

        from safelens.cascade import SafeLens

        logging.disable_progress_bar()
        build = SafeLens.zero_shot if self.zero_shot else SafeLens.load
        return build(self.source, deliberate=deliberate, **self.options)
