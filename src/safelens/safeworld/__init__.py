"""SafeWorld: short generated clips of stick figures with known truth.

Knows nothing of models; drawn pictograms only.
"""

from safelens.safeworld.scene import CLASSES, SCENARIOS, Scene, Truth, sample_scene

__all__ = ["CLASSES", "SCENARIOS", "Scene", "Truth", "sample_scene"]
