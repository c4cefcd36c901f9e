"""Before the service's processes start: tables, something to moderate with, and a first key."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import select

from safelens.bundle import Bundle, BundleError
from safelens.policy import Policy
from safelens.service.database import Database
from safelens.service.deployments import Deployments
from safelens.service.keys import Keys
from safelens.service.media import MediaStore
from safelens.service.settings import Settings
from safelens.service.tables import ApiKey, BundleVersion, Deployment

KEY_FILE = "admin.key"


def prepare(
    settings: Settings, *, bundle: str | None, policy: str | None, tau: float | None
) -> Path | None:
    """Bring a new or old service into a state in which its processes can start.

    Args:
        settings: the service's.
        bundle: name, directory or hub id, to be activated if another is active; None leaves the active one,
            or takes `tiny` where there is none.
        policy: name or file in place of the bundle's.
        tau: in place of the bundle's.

    Returns:
        The file with the first admin's key, if this call made it.

    Raises:
        BundleError: the bundle cannot be used, or the active one was replaced in place.
        PolicyError: the policy cannot be used.
        Problem: bundle and policy do not fit together.
        sqlalchemy.exc.SQLAlchemyError: the database does not answer.
    """
    settings.incoming.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database_url)
    try:
        database.migrate()
        media = MediaStore(settings.media_url)
        _activate(database, Deployments(database, media, settings.bundles), bundle, policy, tau)
        return _first_key(database, settings.data / KEY_FILE)
    finally:
        database.close()


def _activate(
    database: Database,
    deployments: Deployments,
    bundle: str | None,
    policy: str | None,
    tau: float | None,
) -> None:
    with database.reading() as session:
        now = session.scalar(select(Deployment).order_by(Deployment.id.desc()).limit(1))
        active = None if now is None else session.get_one(BundleVersion, now.bundle_sha256)
    if active is not None and bundle is None:
        _unchanged(active)
        return
    row = deployments.register(bundle or "tiny", "system")
    chosen = row.policy_sha256
    if policy is not None:
        version = deployments.add_policy(Policy.load(policy).to_yaml(), "system")
        chosen = version.sha256
    wanted = (row.sha256, chosen, tau)
    if now is None or (now.bundle_sha256, now.policy_sha256, now.tau) != wanted:
        deployments.activate(*wanted, "system")


def _unchanged(active: BundleVersion) -> None:
    """Refuse to go on under the name of a bundle that was replaced in place. Raises BundleError."""
    if active.source is not None and Bundle.load(active.source).sha256 != active.sha256:
        raise BundleError(
            f"{active.source} is no longer the bundle {active.name} {active.version} that is active; give "
            f"--bundle {active.source} to activate what is there now"
        )


def _first_key(database: Database, file: Path) -> Path | None:
    with database.reading() as session:
        if session.scalar(select(ApiKey.id).limit(1)) is not None:
            return None
    key = Keys(database).add("first admin", "admin").key
    number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(number, "w") as out:
        out.write(key + "\n")
    return file
