"""SafeLens moderates video against a written safety policy.

    from safelens import SafeLens

    with SafeLens.load("tiny") as lens:
        print(lens.moderate("clip.mp4").verdict.to_json())

The names below are imported when they are used, so that `import safelens` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from safelens.bundle import Bundle
    from safelens.cascade import Moderation, SafeLens
    from safelens.policy import Policy
    from safelens.verdict import Verdict

_HOMES = {
    "Bundle": "bundle",
    "Moderation": "cascade",
    "Policy": "policy",
    "SafeLens": "cascade",
    "Verdict": "verdict",
}

__all__ = ["Bundle", "Moderation", "Policy", "SafeLens", "Verdict", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"safelens.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'safelens' has no attribute {name!r}")
