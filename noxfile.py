"""The version matrix, run by hand before a release: ``nox -s "tests-3.12(lowest)"``, ``nox -t lowest``, or ``nox`` for all.

A session installs the wheel with the oldest or the newest releases of its requirements that have wheels for that Python, and
runs the tests of the source distribution with ``sip_plugin/`` taken out of it. What follows ``--`` goes to pytest.
``out/matrix/`` keeps requirements and outcome of each session; ``benchmarks/results/matrix.md`` is the table of all of them.
A run of some tests only (a path, ``-k``, ``-m``) is not recorded.
"""

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv"

RECORDS = Path("out", "matrix").absolute()
TABLE = Path("benchmarks", "results", "matrix.md").absolute()
PACKAGES = (
    "torch",
    "numpy",
    "torchvision",
    "torchattacks",
    "adversarial-robustness-toolbox",
    "foolbox",
    "pyautoattack",
    "torchattack",
    "secml-torch",
    "captum",
    "lightning",
    "accelerate",
    "numba",
)


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
@nox.parametrize(
    "resolution",
    [nox.param("lowest-direct", id="lowest", tags=["lowest"]), nox.param("highest", id="newest", tags=["newest"])],
)
def tests(session: nox.Session, resolution: str) -> None:
    """The tests against the installed wheel."""
    name = "lowest" if resolution == "lowest-direct" else "newest"
    part = any(arg.startswith(("-k", "-m")) or Path(arg.partition("::")[0]).exists() for arg in session.posargs)
    temporary = Path(session.create_tmp()).absolute()
    record = temporary / "record" if part else RECORDS / f"{session.python}-{name}"
    source = temporary / "source"
    for folder in (record, source):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    requirements, junit = record / "requirements.txt", record / "junit.xml"

    session.run_install("uv", "build", "--quiet", "--out-dir", source / "dist", external=True)
    (wheel,), (sdist,) = (source / "dist").glob("*.whl"), (source / "dist").glob("*.tar.gz")
    shutil.unpack_archive(sdist, source)
    source /= sdist.name.removesuffix(".tar.gz")
    shutil.rmtree(source / "sip_plugin")
    compiled = ("--extra", "dev", "--resolution", resolution, "--no-build", "--no-annotate", "--no-header")
    session.run_install(
        *("uv", "pip", "compile", "--quiet", *compiled, "-o", requirements, "pyproject.toml"), external=True
    )
    session.install("--no-build", "--reinstall-package", "sip-plugin", "-r", requirements, wheel)
    session.install("--no-build", "--no-deps", "-c", "constraints.txt", "adv-lib", "cleverhans")  # as in the Makefile
    session.run_install("python", "scripts/cure_torchvision.py")

    python = str(session.run("python", "-c", "import platform; print(platform.python_version())", silent=True)).strip()
    commit = str(session.run("git", "rev-parse", "--short", "HEAD", external=True, silent=True)).strip()
    row = f"{python} | {name} | {commit} | {' '.join(session.posargs).replace('|', '/') or 'all'}"
    session.chdir(source)
    session.run(
        *("python", "-m", "pytest", "--numprocesses", "auto", "--dist", "loadgroup", "--junitxml", junit),
        *("-o", f"junit_suite_name={row}", *session.posargs),
        env={"OMP_WAIT_POLICY": "PASSIVE"},
        success_codes=[0, 1],
    )
    if not junit.exists():
        return  # nox --install-only
    if not part:
        write_table()
    if any(int(suite_of(junit).get(key, 0)) for key in ("failures", "errors")):
        session.error(f"{session.name}: tests failed")


def suite_of(junit: Path) -> dict[str, str]:
    """What pytest wrote of its run: numbers of tests and the name that was given to it."""
    return next(ElementTree.parse(junit).getroot().iter("testsuite")).attrib


def write_table() -> None:
    """One row per session that has a record, with the versions that it had."""
    heads = ["Python", "requirements", "commit", "tests", "passed", "failed", "skipped", "minutes", *PACKAGES]
    lines = [
        "# Version matrix",
        "",
        "Made by `nox` (`noxfile.py`): the installed wheel, tested on each Python with the oldest and the newest",
        "requirements that it can have there. *tests*: `all`, or the options that pytest was given.",
        "",
    ]
    lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for junit in sorted(RECORDS.glob("*/junit.xml")):
        suite = suite_of(junit)
        failed, skipped = int(suite["failures"]) + int(suite["errors"]), int(suite["skipped"])
        counts = (int(suite["tests"]) - failed - skipped, failed, skipped, round(float(suite["time"]) / 60))
        pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", junit.with_name("requirements.txt").read_text(), re.MULTILINE))
        cells = [suite["name"], *map(str, counts), *(pins.get(package, "–") for package in PACKAGES)]
        lines.append(f"| {' | '.join(cells)} |")
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
