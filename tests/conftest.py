"""Fixtures that several test files use."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """The folder of real videos; tests that need it are skipped where it is absent."""
    folder = Path(__file__).parents[1].parent / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip(f"no folder of real videos at {folder}")
    return folder
