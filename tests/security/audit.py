"""`python -m tests.security.audit code|secrets|packages|accept …`: what can be found without running a job.

    code        bandit over what is in the image; what it finds has a reason here or in the line itself
    secrets     detect-secrets over the files of the project, beside .secrets.baseline
    accept      take what it finds into that baseline
    packages    pip-audit over requirements.txt, which asks the package index for known holes

Exit status 0: nothing new. 1: something is. 3: the index could not be asked, so nothing is known.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from detect_secrets import SecretsCollection
from detect_secrets.settings import transient_settings

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
BASELINE = ".secrets.baseline"
# Written by programs, and full of digests: a secret would have to be in what they are made of.
GENERATED = frozenset(
    {"requirements.txt", "requirements-dev.txt", "docs/openapi.json", "docs/postman.json", BASELINE}
)
FINE, FOUND, UNKNOWN = 0, 1, 3

_CHILD = "an argument list without a shell, of our own words"
# File and rule: how often, and why that is right. A rule that ruff has, too, is answered in the line.
ACCEPTED: Mapping[tuple[str, str], tuple[int, str]] = {
    ("model_cache/cli/trials.py", "B404"): (1, _CHILD),
    ("model_cache/cli/trials.py", "B603"): (1, _CHILD),
    ("model_cache/weights/pickles.py", "B403"): (
        2,
        "both modules read pickles without running them",
    ),
    ("model_cache/sharing/uses.py", "B311"): (1, "a choice of files, no secret"),
    ("schemas/settings.py", "B105"): (5, "names of variables, not what they hold"),
    ("worker/machine/hardware.py", "B404"): (1, _CHILD),
    ("worker/machine/hardware.py", "B603"): (1, _CHILD),
    ("worker/child/process.py", "B404"): (1, _CHILD),
    ("worker/child/process.py", "B603"): (1, _CHILD),
}


def program(name: str, *argv: str) -> str:
    """Return what a program of the environment, or else of the system, prints."""
    path = shutil.which(name, path=f"{BIN}:/usr/bin:/bin:/usr/local/bin")
    if path is None:
        raise SystemExit(f"{name} is not installed")
    done = subprocess.run(
        [path, *argv], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    if not done.stdout:
        raise SystemExit(f"{name} said nothing: {done.stderr[-500:]}")
    return done.stdout


def unanswered(findings: list[dict[str, Any]], texts: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield what bandit found and nobody has answered, and answers to what is no more.

    Args:
        findings: the `results` of bandit's JSON.
        texts: the lines of each file.
    """
    counted = Counter[tuple[str, str]]()
    for finding in findings:
        file, rule = finding["filename"].removeprefix("./"), finding["test_id"]
        numbers = range(finding["line_range"][0], finding["line_range"][-1] + 1)
        if not any(f"noqa: S{rule[1:]}" in texts[file][number - 1] for number in numbers):
            counted[file, rule] += 1
    for file, rule in sorted(counted.keys() | ACCEPTED.keys()):
        times, _ = ACCEPTED.get((file, rule), (0, ""))
        if counted[file, rule] != times:
            yield f"{file}: {rule} found {counted[file, rule]} times, answered {times} times"


def code() -> int:
    """Look at the code that is in the image."""
    told = program("bandit", "-q", "-c", "pyproject.toml", "-r", ".", "--exit-zero", "-f", "json")
    findings = json.loads(told)["results"]
    names = {finding["filename"].removeprefix("./") for finding in findings}
    texts = {name: (ROOT / name).read_text().splitlines() for name in names}
    problems = list(unanswered(findings, texts))
    print("\n".join([*problems, f"code: {len(findings)} findings, {len(problems)} not answered"]))
    return FOUND if problems else FINE


def scanned(files: list[str], known: dict[str, Any]) -> SecretsCollection:
    """Return what looks like a secret, by the plugins and filters of `known`, a baseline."""
    found = SecretsCollection(root=str(ROOT))
    config = {"plugins_used": known["plugins_used"], "filters_used": known["filters_used"]}
    with transient_settings(config):
        for file in files:
            found.scan_file(file)
    return found


def strangers(found: SecretsCollection, known: dict[str, Any]) -> Iterator[str]:
    """Yield what of `found` is not in `known`, a baseline of detect-secrets."""
    baseline = {
        (entry["filename"], entry["type"], entry["hashed_secret"])
        for entries in known["results"].values()
        for entry in entries
    }
    for file, secret in found:
        if (file, secret.type, secret.secret_hash) not in baseline:
            yield f"{file}:{secret.line_number}: {secret.type}"


def _kept() -> list[str]:
    """Return the files that git tracks, or would."""
    told = program("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return [
        name
        for name in told.split("\0")
        if name and name not in GENERATED and (ROOT / name).is_file()
    ]


def secrets() -> int:
    """Look for secrets in the files of the project."""
    known = json.loads((ROOT / BASELINE).read_text())
    files = _kept()
    found = list(strangers(scanned(files, known), known))
    print("\n".join([*found, f"secrets: {len(files)} files, {len(found)} not in {BASELINE}"]))
    return FOUND if found else FINE


def accept() -> int:
    """Write the baseline anew: each line of it must have been looked at."""
    known = json.loads((ROOT / BASELINE).read_text())
    results = scanned(_kept(), known).json()
    for file, entries in results.items():
        for entry in entries:
            entry["filename"] = file
            del entry["is_verified"]
    text = json.dumps({**known, "results": results}, indent=2)
    (ROOT / BASELINE).write_text(f"{text}\n")
    return FINE


def verdict(packages: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Return the exit status and what there is to say of what pip-audit answered.

    Without the index it reports every package as skipped, and none as vulnerable.
    """
    unasked = [package["name"] for package in packages if "vulns" not in package]
    lines = [
        f"{package['name']} {package['version']}: {hole['id']}, mended in"
        f" {', '.join(hole['fix_versions']) or 'no version'}"
        for package in packages
        for hole in package.get("vulns", ())
    ]
    asked = len(packages) - len(unasked)
    if lines:
        return FOUND, [*lines, f"packages: {len(lines)} known holes in {asked} packages"]
    if unasked or not packages:
        some = ", ".join(unasked[:5])
        return UNKNOWN, [f"packages: NOT KNOWN for {len(unasked)} of {len(packages)}: {some}, …"]
    return FINE, [f"packages: no known hole in {asked} packages"]


def packages() -> int:
    """Ask for known holes of what is in requirements.txt."""
    told = program(
        "pip-audit",
        "--disable-pip",
        "--progress-spinner=off",
        "-f",
        "json",
        "-r",
        "requirements.txt",
    )
    status, lines = verdict(json.loads(told)["dependencies"])
    print("\n".join(lines))
    return status


def worst(statuses: Iterable[int]) -> int:
    """Return the exit status of all parts: what one found goes before what another could not ask."""
    return max(statuses, key=(FINE, UNKNOWN, FOUND).index)


PARTS: Mapping[str, Callable[[], int]] = {
    "code": code,
    "secrets": secrets,
    "packages": packages,
    "accept": accept,
}

if __name__ == "__main__":
    sys.exit(worst([PARTS[name]() for name in sys.argv[1:]]))
