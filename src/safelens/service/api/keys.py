"""`/v1/keys`: who may ask."""

from __future__ import annotations

from fastapi import APIRouter

from safelens.service.api.models import KeyMade, KeyView, NewKey
from safelens.service.context import Admin, Here
from safelens.service.problems import Problem

router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post("", status_code=201)
def add(here: Here, caller: Admin, asked: NewKey) -> KeyMade:
    """Make a key. Its secrets are in this answer and nowhere else."""
    made = here.keys.add(asked.name, asked.role, actor=caller.id)
    return KeyMade(id=made.id, key=made.key, webhook_secret=made.webhook_secret)


@router.get("")
def keys(here: Here, caller: Admin) -> list[KeyView]:
    """All keys, also revoked ones."""
    return [KeyView.model_validate(row) for row in here.keys.all()]


@router.delete("/{key_id}", status_code=204)
def revoke(here: Here, caller: Admin, key_id: str) -> None:
    """Revoke a key at once."""
    if not here.keys.revoke(key_id, actor=caller.id):
        raise Problem("not_found", f"there is no key {key_id!r}, or it is revoked already")
