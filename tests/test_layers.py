"""Rooms import downwards only, through their doors, and heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cellgraph_dask

PACKAGE = Path(cellgraph_dask.__file__).parent

# Floors of the house, from the ground up: a room imports rooms of lower floors only.
FLOORS = [
    {"errors", "_version"},
    {"machine"},
    {"edge_pairs", "runtime"},
    {"publish", "source"},
    {"stages", "verify"},
    {"delivery"},
    {"plan"},
    {"export"},
    {"inspection", "demo"},
    {"cli", "__init__", "__main__"},
]
