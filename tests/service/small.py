"""Verdicts and jobs as the service's tests need them."""

import hashlib

from safelens.service.sink import Received
from safelens.service.submit import Wanted, new_id
from safelens.verdict import CategoryScore, Evidence, Provenance, Verdict

PROVENANCE = Provenance(package="0.1.0", policy="default", policy_sha256="p", knows="drawings")


def verdict(name="video", *, flagged=False, score=0.1, **fields):
    """A decided verdict."""
    label = "violence" if flagged else "safe"
    values = {
        "video": name, "status": "ok", "flagged": flagged, "label": label,
        "confidence": score if flagged else 1 - score, "decided_by": "screen",
        "categories": [CategoryScore(id="violence", name="Violence", flagged=flagged, score=score)],
        "evidence": [Evidence(start_s=0, end_s=1, category="violence", score=score)] if flagged else [],
        "provenance": PROVENANCE,
    }  # fmt: skip
    return Verdict(**(values | fields))


def upload(content=b"a video", **fields):
    """A video that was received; its file is no matter here."""
    digest = hashlib.sha256(content).hexdigest()
    received = Received(None, len(content), digest, "video/mp4")
    return Wanted(**({"id": new_id("job"), "name": "a.mp4", "received": received} | fields))
