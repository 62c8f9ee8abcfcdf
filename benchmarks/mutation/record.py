"""A pytest plugin: how long each test took, in the JSON file that MUTATION_DURATIONS names."""

from __future__ import annotations

import json
import os
from typing import Any

_seconds: dict[str, float] = {}


def pytest_runtest_logreport(report: Any) -> None:
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration


def pytest_sessionfinish() -> None:
    with open(os.environ["MUTATION_DURATIONS"], "w", encoding="utf-8") as file:
        json.dump(_seconds, file)
