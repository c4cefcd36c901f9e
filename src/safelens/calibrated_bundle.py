"""A bundle with the temperature and tau that calibration found, and the evidence beside them.

Knows what calibration hands on and how a bundle is written. Measures nothing, and runs no model.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from safelens.bundle import Bundle, BundleError, write_bundle
from safelens.pack import CARD, beside, into_place
from safelens.reliability import Bin
from safelens.risk import ALL_TO_S2, ClassRiskControl, RiskControl
from safelens.tradeoff import OperatingPoint

CALIBRATION = "calibration.json"
_HEADING = "\n## Calibration\n"
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Calibration(BaseModel):
    """What was found, on what, and the evidence; the bundle's ``calibration.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["safelens.calibration/1"] = "safelens.calibration/1"
    bundle_sha256: _Digest
    """The bundle whose S1 and S2 gave the answers."""
    data_sha256: _Digest
    """The videos and their truth, such as the file of records."""
    counts: dict[str, Annotated[int, Field(ge=0)]]
    """Videos by what they served for ("temperature", "tau", "test")."""
    method: Literal["cost", "accuracy", "risk", "class_risk"]
    """What tau was chosen by."""
    target: dict[str, float]
    """What was asked for, such as `alpha` and `delta`."""
    evidence: RiskControl | ClassRiskControl | OperatingPoint
    """What came of it; gives tau."""
    lower_bound: float | None = None
    """Of the accuracy, where that was asked for."""
    temperature: float = Field(default=1.0, gt=0)
    """Fitted on that bundle's probabilities, hence on top of the temperature that it has."""
    ece_before: float
    """Expected calibration error of that bundle's confidence."""
    ece_after: float
    """The same with `temperature`."""
    reliability: tuple[Bin, ...]
    """Confidence and accuracy with `temperature`."""

    @property
    def tau(self) -> float:
        """For classes without their own; there are none if taus were found by class."""
        return ALL_TO_S2 if isinstance(self.evidence, ClassRiskControl) else self.evidence.tau

    @property
    def taus(self) -> dict[str, float]:
        """By predicted class, empty if one tau serves all."""
        return self.evidence.taus if isinstance(self.evidence, ClassRiskControl) else {}


def write_calibration(source: str | Path, out: Path, result: Calibration) -> str:
    """Copy a bundle with new temperature and tau, the evidence, and a card that speaks of them.

    The new bundle appears whole or not at all.

    Args:
        source: The bundle that was calibrated, as :meth:`Bundle.load` takes it.
        out: The new bundle's directory; it must not exist, or be the source, which is then replaced.
        result: What was found.

    Returns:
        The new bundle's digest.

    Raises:
        BundleError: the source cannot be used or is not the one that was calibrated, `out` exists, or
            the disk is full.
    """
    found = Bundle.load(source)
    settings = found.settings
    if result.bundle_sha256 != found.sha256:
        raise BundleError(
            f"bundle {found.folder}: its SHA-256 is {found.sha256[:12]}..., but the calibration is of "
            f"{result.bundle_sha256[:12]}...; calibrate this bundle, or name the one that was"
        )
    if settings.screen.probe is None and result.temperature != 1:
        raise BundleError(
            f"bundle {found.folder}: without a probe there are no logits for a temperature to divide; "
            "calibrate tau alone"
        )
    if out.exists() and out.samefile(found.folder):
        out = out.resolve()
    elif out.exists() or out.is_symlink():
        raise BundleError(f"{out}: exists; name another directory, or the bundle's own")
    changed = settings.model_dump(exclude={"files"}, exclude_unset=True)
    changed |= {"tau": result.tau, "taus": result.taus, "calibration": CALIBRATION}
    changed["screen"]["temperature"] = settings.screen.temperature * result.temperature
    with beside(out, [found.folder / name for name in settings.files]) as folder:
        for name in settings.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(found.folder / name, folder / name)
        (folder / CALIBRATION).write_text(result.model_dump_json(indent=1) + "\n", "utf-8")
        card = folder / CARD
        before = card.read_text("utf-8") if card.is_file() else f"# {settings.name}\n"
        card.write_text(before.partition(_HEADING)[0] + _section(result, changed), "utf-8")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        digest = write_bundle(folder, changed)
        into_place(folder, out)
    return digest


def _section(result: Calibration, settings: dict[str, Any]) -> str:
    """The card's last section, which a later calibration replaces."""
    target = ", ".join(f"{name} {value:g}" for name, value in result.target.items())
    counts = ", ".join(f"{name} {count}" for name, count in result.counts.items())
    taus = result.taus or {"every class": result.tau}
    rows = [
        f"| {name} | {'none, all to S2' if tau > 1 else f'{tau:.4f}'} |"
        for name, tau in taus.items()
    ]
    return "\n".join(
        (
            _HEADING,
            "Where this differs from what stands above, this holds. Tau was chosen by "
            f"{result.method.replace('_', ' ')} ({target}) on data with SHA-256 `{result.data_sha256}` "
            f"(videos: {counts}).",
            "",
            f"Temperature {settings['screen']['temperature']:.4f}; expected calibration error "
            f"{result.ece_before:.4f} before, {result.ece_after:.4f} after. Evidence: `{CALIBRATION}`.",
            "",
            "| S1's answer | stands from a confidence of |",
            "|---|---|",
            *rows,
            "",
        )
    )
