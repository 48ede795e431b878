"""Real cellucid of other generations than the installed one, each in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def install(version: str, folder: Path) -> Path:
    """Let pip bring a version into a folder, and return that; what it needs is there already."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    got = subprocess.run(
        [*pip, f"cellucid=={version}"], capture_output=True, text=True, check=False
    )
    assert got.returncode == 0, got.stderr
    return folder


def run_with(folder: Path, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a process that finds the cellucid in a folder before any other."""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
