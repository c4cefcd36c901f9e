"""Policies and bundles as versions, and which of them moderates.

Knows how they are added, checked, unpacked and activated. A deployment is a bundle, a policy and a tau; the
last one is active, earlier ones are activated again to roll back.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path, PurePosixPath

from sqlalchemy import select
from sqlalchemy.orm import Session

from safelens.bundle import Bundle, BundleError
from safelens.policy import Policy, PolicyError
from safelens.service.audit import record
from safelens.service.database import Database
from safelens.service.media import MediaStore
from safelens.service.problems import Problem
from safelens.service.tables import BundleVersion, Deployment, PolicyVersion

_MOST_FILES = 1000
_MOST_TIMES = 10
"""How much larger than its archive a bundle may be: weights hardly compress."""
_CHECK_S = 600.0


_NEWEST = select(Deployment).order_by(Deployment.id.desc()).limit(1)


def active(session: Session) -> Deployment:
    """What moderates now. Raises Problem (not_ready)."""
    found = session.scalar(_NEWEST)
    if found is None:
        raise Problem("not_ready", "no bundle is active yet; an admin activates one")
    return found


class Deployments:
    """Versions in a database, and bundles' files.

    Args:
        database: where versions are kept.
        media: where uploaded bundles are kept.
        folder: where they are unpacked on this machine.
    """

    def __init__(self, database: Database, media: MediaStore, folder: Path) -> None:
        self._database = database
        self._media = media
        self._folder = folder

    def add_policy(self, text: str, actor: str) -> PolicyVersion:
        """Add a policy file; the same content is the same version.

        Raises:
            Problem: invalid, with every problem and its line.
        """
        try:
            policy = Policy.from_yaml(text)
        except PolicyError as error:
            problems = [{"line": p.line, "message": p.message} for p in error.problems]
            raise Problem("invalid", "this is no policy", problems=problems) from error
        with self._database.writing() as session:
            return _add_policy(session, policy, actor)

    def add_bundle(self, archive: Path, actor: str) -> BundleVersion:
        """Add a bundle's zip; every digest is checked, and that every part loads. Takes seconds to minutes.

        Raises:
            Problem: invalid, or bad_request if it is no archive that may be unpacked.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".new-") as place:
            folder = _unpack(archive, Path(place))
            try:
                bundle = Bundle.load(folder)
            except BundleError as error:
                told = str(error).replace(str(folder), "the bundle")
                raise Problem("invalid", told) from error
            _check_loads(folder)
            home = self._folder / bundle.sha256
            if not home.exists():
                shutil.move(folder, home)
        self._media.take(archive, f"bundles/{bundle.sha256}")
        return self._add(bundle, None, actor)

    def register(self, source: str, actor: str) -> BundleVersion:
        """Add a bundle that lies where every worker finds it: a name, a directory or a hub id.

        Raises:
            BundleError: it cannot be used.
        """
        path = Path(source)
        return self._add(
            Bundle.load(source), str(path.absolute()) if path.is_dir() else source, actor
        )

    def activate(
        self, bundle_sha256: str, policy_sha256: str | None, tau: float | None, actor: str
    ) -> Deployment:
        """Let jobs from now on be moderated by this.

        Args:
            bundle_sha256: of a bundle that was added.
            policy_sha256: of a policy that was added; None for the bundle's own.
            tau: in place of the bundle's.
            actor: for the audit log.

        Raises:
            Problem: not_found, or invalid if the policy does not fit the bundle.
        """
        bundle, policy = self._find(bundle_sha256, policy_sha256)
        try:
            loaded = Bundle.load(self.folder(bundle))
            loaded.check_policy(Policy.from_yaml(policy.yaml))
        except (BundleError, OSError) as error:
            raise Problem("invalid", str(error)) from error
        with self._database.writing() as session:
            row = Deployment(
                bundle_sha256=bundle.sha256,
                policy_sha256=policy.sha256,
                tau=tau,
                activated_at=time.time(),
                activated_by=actor,
            )
            session.add(row)
            session.flush()
            record(
                session,
                actor,
                "deployment.activate",
                str(row.id),
                bundle=bundle.sha256,
                policy=policy.sha256,
                tau=tau,
            )
        return row

    def folder(self, bundle: BundleVersion) -> str:
        """What `Bundle.load` reads; an uploaded bundle is unpacked first, once a machine.

        Raises:
            OSError: it cannot be had from the media store.
        """
        if bundle.source is not None:
            return bundle.source
        return unpacked(bundle.sha256, self._media, self._folder)

    def _find(self, bundle: str, policy: str | None) -> tuple[BundleVersion, PolicyVersion]:
        with self._database.reading() as session:
            found = session.get(BundleVersion, bundle)
            if found is None:
                raise Problem("not_found", f"there is no bundle {bundle!r}; upload it first")
            chosen = session.get(PolicyVersion, policy or found.policy_sha256)
            if chosen is None:
                raise Problem("not_found", f"there is no policy {policy!r}; upload it first")
            return found, chosen

    def _add(self, bundle: Bundle, source: str | None, actor: str) -> BundleVersion:
        with self._database.writing() as session:
            known = session.get(BundleVersion, bundle.sha256)
            if known is not None:
                return known
            _add_policy(session, bundle.policy, actor)
            settings = bundle.settings
            row = BundleVersion(
                sha256=bundle.sha256,
                name=settings.name,
                version=settings.version,
                source=source,
                knows=settings.knows,
                tau=settings.tau,
                taus=settings.taus,
                layout=settings.layout,
                keyframe_shift_s=settings.clip.keyframe_shift_s,
                policy_encoding=settings.policy_encoding,
                prune_keep=None if settings.prune is None else settings.prune.keep,
                policy_sha256=bundle.policy.sha256,
                added_at=time.time(),
                added_by=actor,
            )
            session.add(row)
            record(session, actor, "bundle.add", row.sha256, name=row.name, version=row.version)
            return row


def unpacked(sha256: str, media: MediaStore, folder: Path) -> str:
    """An uploaded bundle as a folder of this machine; it is unpacked into `folder` first, once. Raises OSError."""
    home = folder / sha256
    if not home.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as place,
            media.local(f"bundles/{sha256}") as archive,
        ):
            found = _unpack(archive, Path(place))
            try:
                found.rename(home)
            except OSError:
                if not home.exists():  # another process was first
                    raise
    return str(home)


def _add_policy(session: Session, policy: Policy, actor: str) -> PolicyVersion:
    known = session.get(PolicyVersion, policy.sha256)
    if known is not None:
        return known
    row = PolicyVersion(
        sha256=policy.sha256,
        policy_id=policy.id,
        version=policy.version,
        yaml=policy.to_yaml(),
        added_at=time.time(),
        added_by=actor,
    )
    session.add(row)
    session.flush()
    record(session, actor, "policy.add", row.sha256, policy=row.policy_id, version=row.version)
    return row


def _unpack(archive: Path, place: Path) -> Path:
    """Unpack into `place`; nothing outside it, nothing but files, and no more than the archive can hold.

    Returns:
        The folder that holds `bundle.yaml`.

    Raises:
        Problem: bad_request.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            entries = [entry for entry in file.infolist() if not entry.is_dir()]
            if len(entries) > _MOST_FILES:
                raise Problem(
                    "bad_request", f"{len(entries)} files; at most {_MOST_FILES} are taken"
                )
            left = _MOST_TIMES * archive.stat().st_size
            for entry in entries:
                parts = PurePosixPath(entry.filename).parts
                if not parts or parts[0] == "/" or ".." in parts or "\\" in entry.filename:
                    raise Problem("bad_request", f"{entry.filename!r} leads out of the archive")
                target = place.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(entry) as packed, target.open("xb") as out:
                    # What the archive says of its sizes may be a lie: what comes out is counted.
                    while chunk := packed.read(1 << 20):
                        left -= len(chunk)
                        if left < 0:
                            raise Problem(
                                "bad_request",
                                f"it unpacks to more than {_MOST_TIMES} times its size; no bundle does",
                            )
                        out.write(chunk)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError) as error:
        raise Problem("bad_request", f"no zip archive that can be read ({error})") from error
    except (OSError, ValueError) as error:
        raise Problem("bad_request", f"the archive cannot be unpacked ({error})") from error
    inner = [path for path in place.iterdir() if path.is_dir()]
    holds = (place / "bundle.yaml").is_file()
    return inner[0] if not holds and len(inner) == 1 else place


def _check_loads(folder: Path) -> None:
    """Load every part in a process of its own, which models may bring down. Raises Problem (invalid)."""
    command = [sys.executable, "-m", "safelens", "bundle", "check", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CHECK_S)
    except subprocess.TimeoutExpired:
        raise Problem("invalid", f"its parts did not load within {_CHECK_S:g} s") from None
    if done.returncode:
        told = done.stderr.strip().splitlines() or ["it does not load"]
        raise Problem("invalid", told[-1].replace(str(folder), "the bundle")[:1000])
