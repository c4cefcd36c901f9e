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
from safelens.reliability import Bin, reliability_diagram
from safelens.risk import ALL_TO_S2, ClassRiskControl, RiskControl
from safelens.thresholds import Thresholds, shown
from safelens.tradeoff import OperatingPoint

CALIBRATION, DIAGRAM = "calibration.json", "reliability.svg"
Method = Literal["risk", "class_risk", "cost", "accuracy"]
"""What tau is chosen by."""
Evidence = RiskControl | ClassRiskControl | OperatingPoint
"""What tau comes from."""
_HEADING = "\n## Calibration\n"
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0)]


class Measured(BaseModel):
    """S1, and where S2 was asked the cascade, on the test part."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    answers: _Count
    """Answers of S1 on familiar videos."""
    alone: _Count
    """Those that stand: S1 decides alone."""
    wrong: _Count
    """Those of them that are wrong."""
    risk: float
    """Selective risk, `wrong` of `alone`; of the worst class where thresholds are by class."""
    ece: float
    """Expected calibration error of S1's answers on familiar videos."""
    cascade: OperatingPoint | None = None
    """Accuracy and cost, in seconds without decoding."""


class Calibration(BaseModel):
    """What was found, on what, and the evidence; the bundle's ``calibration.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["safelens.calibration/1"] = "safelens.calibration/1"
    bundle_sha256: _Digest
    """The bundle whose S1 and S2 gave the answers."""
    data_sha256: _Digest
    """The videos and their truth, such as the file of records."""
    seed: int
    """Of the division of the videos."""
    counts: dict[str, _Count]
    """Videos by what they served for ("temperature", "tau", "test")."""
    left_out: dict[str, _Count]
    """Records that no figure of S1 counts, by reason."""
    method: Method
    """What tau was chosen by."""
    target: dict[str, float]
    """What was asked for, such as `alpha` and `delta`."""
    evidence: Evidence
    """What came of it; gives tau."""
    lower_bound: float | None = None
    """Of the accuracy, where that was asked for."""
    temperature: float = Field(default=1.0, gt=0)
    """Fitted on that bundle's probabilities, hence on top of the temperature that it has."""
    before: Measured
    """That bundle, with its own thresholds."""
    after: Measured
    """With what was found."""
    reliability: tuple[Bin, ...]
    """Confidence and accuracy on the test part, with `temperature`."""

    @property
    def thresholds(self) -> Thresholds:
        """What the evidence gives."""
        return thresholds_of(self.evidence)


def thresholds_of(evidence: Evidence) -> Thresholds:
    """One tau, or one by class: then none is without its own, and the one for all lets nothing stand."""
    if isinstance(evidence, ClassRiskControl):
        return Thresholds(ALL_TO_S2, evidence.taus)
    return Thresholds(evidence.tau)


def destination(found: Bundle, out: Path) -> Path:
    """Where a calibrated bundle would be written, with links followed where it is the bundle itself.

    Raises:
        BundleError: `out` exists and is not the bundle itself.
    """
    if out.exists() and out.samefile(found.folder):
        return out.resolve()
    if out.exists() or out.is_symlink():
        raise BundleError(f"{out}: exists; name another directory, or the bundle's own")
    return out


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
        ModuleNotFoundError: matplotlib is absent; it comes with `safelens[evaluate]`.
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
    out = destination(found, out)
    diagram = reliability_diagram(result.reliability, title="S1 on the test part")
    changed = settings.model_dump(exclude={"files"}, exclude_unset=True)
    thresholds = result.thresholds
    changed |= {"tau": thresholds.tau, "taus": dict(thresholds.taus), "calibration": CALIBRATION}
    changed["screen"]["temperature"] = settings.screen.temperature * result.temperature
    with beside(out, [found.folder / name for name in settings.files]) as folder:
        for name in settings.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(found.folder / name, folder / name)
        (folder / CALIBRATION).write_text(result.model_dump_json(indent=1) + "\n", "utf-8")
        (folder / DIAGRAM).write_bytes(diagram)
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
    left_out = ", ".join(f"{count} {reason}" for reason, count in result.left_out.items())
    taus = result.thresholds.taus or {"every class": result.thresholds.tau}
    rows = [f"| {name} | {shown(tau)} |" for name, tau in taus.items()]
    after = result.after
    return "\n".join(
        (
            _HEADING,
            "Where this differs from what stands above, this holds. Tau was chosen by "
            f"{result.method.replace('_', ' ')} ({target}) on data with SHA-256 `{result.data_sha256}` "
            f"(videos: {counts}; seed {result.seed}). Not counted for S1: {left_out or 'none'}.",
            "",
            f"Temperature {settings['screen']['temperature']:.4f}; expected calibration error "
            f"{result.before.ece:.4f} before, {after.ece:.4f} after, on the test part. There S1 decides "
            f"{after.alone} of {after.answers} familiar videos alone, {after.wrong} of them wrongly"
            + (
                f"; the cascade is right on {after.cascade.right} of {after.cascade.count} videos, at "
                f"{after.cascade.cost:.3f} of the seconds of S2 on all."
                if after.cascade
                else "."
            )
            + f" Evidence: `{CALIBRATION}`.",
            "",
            f"![Reliability of S1's confidence]({DIAGRAM})",
            "",
            "| S1's answer | stands from a confidence of |",
            "|---|---|",
            *rows,
            "",
        )
    )
