"""Fixtures for everything: a clean environment, simulators as processes, no unexplained skip."""

import contextlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests

from benchmarks.forks import Forked, Nursery

ROOT = Path(__file__).parent.parent
NURSERY = Nursery("simulator.webui", "simulator.hub", "simulator.queue")
PERMITTED = [
    line.partition("  # ")[0]
    for line in (ROOT / "tests" / "skips.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
_unexplained: list[str] = []
# A machine that is busy with other tests is no finding. The same commit is tried with the same examples;
# `make fuzz` looks for others.
_PATIENT = hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=True
)
hypothesis.settings.register_profile("patient", _PATIENT)
hypothesis.settings.register_profile("exploring", _PATIENT, derandomize=False, max_examples=1000)
hypothesis.settings.load_profile("patient")
# Else each process that imports aiohttp reads all authorities that this machine trusts, which takes 0.1 s.
# This one's key exists no more: what tests speak TLS to has certificates of its own.
# Source: aiohttp 3.14, connector.py, _make_ssl_context; SSL_CTX_set_default_verify_paths(3).
os.environ["SSL_CERT_FILE"] = str(ROOT / "tests" / "authority.pem")  # noqa: TID251 - for children, too


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--chaos",
        type=float,
        default=0.03,
        metavar="FACTOR",
        help="scale of the tests in tests/chaos: 1 for the figures of `make chaos`",
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not any(re.fullmatch(pattern, reason) for pattern in PERMITTED):
            _unexplained.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unexplained:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _unexplained:
        terminalreporter.write_line(
            f"skipped for a reason that tests/skips.txt does not list: {line}"
        )


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):  # noqa: TID251 - to clear it
        if name.startswith(("A1111_", "RUNPOD_", "HF_", "CIVITAI_", "BUCKET_")):
            monkeypatch.delenv(name)


@dataclass
class Simulator:
    """A simulator that runs as a process of its own."""

    url: str
    process: subprocess.Popen[str] | Forked

    def get(self, path: str) -> Any:
        return requests.get(self.url + path, timeout=10).json()

    def post(self, path: str, body: Any = None) -> Any:
        response = requests.post(self.url + path, json=body, timeout=30)
        assert response.ok, response.text
        return response.json() if response.content else None


StartSimulator = Callable[..., Simulator]


@contextlib.contextmanager
def running(*argv: object) -> Iterator[Simulator]:
    """Start `python -m simulator ARGV…` and end it afterwards.

    It is not traced for coverage: tests/contract and tests/simulator have its code in their own
    process, and here it would take its time from what is tested.
    """
    # Killed, it takes no file of its own away.
    with tempfile.TemporaryDirectory(prefix="simulator-") as scratch:
        process = NURSERY.start("simulator", *map(str, argv), "--port", "0", TMPDIR=scratch)
        try:
            yield Simulator(json.loads(process.stdout.readline())["url"], process)
        finally:
            process.kill()
            process.communicate()


@pytest.fixture
def simulator() -> Iterator[StartSimulator]:
    """Start any simulator: `simulator("webui", "--port", 0, …)`; all end with the test."""
    with contextlib.ExitStack() as stack:

        def start(*argv: object) -> Simulator:
            return stack.enter_context(running(*argv))

        yield start
