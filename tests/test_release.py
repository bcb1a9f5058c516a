"""What a release consists of: the container's steps, the matrix of versions, the licences of dependencies."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plrc.cli.commands import COMMANDS
from plrc.doctor import OPTIONAL, REQUIRED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def test_the_container_copies_what_exists_and_what_its_context_holds(project: dict[str, Any]) -> None:
    copied = [name for names in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.M) for name in names.split()]
    context = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == context
    assert all((ROOT / name).exists() for name in copied)
    package = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = ["pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]]
    needed += [Path(folder).parts[0] for folder in package]
    assert set(needed) == set(copied)


def test_the_container_does_what_the_readme_says(project: dict[str, Any]) -> None:
    commands = re.findall(r"^    (docker .*)$", README, re.M)
    assert len(commands) == 2
    for command in commands:
        assert f"#     {command}\n" in DOCKERFILE
    assert "pip install ." in README and re.search(r"^RUN pip install .* \.$", DOCKERFILE, re.M)
    (command,) = re.findall(r"^RUN plrc (\w+)$", DOCKERFILE, re.M)
    assert command in COMMANDS and f"`plrc {command}`" in README
    (entry,) = re.findall(r'^ENTRYPOINT \["(\w+)"\]$', DOCKERFILE, re.M)
    assert entry in project["project"]["scripts"]
    (torch,) = (name.partition(" ")[0] for name in project["project"]["dependencies"] if name.startswith("torch>"))
    assert f'pip install --no-cache-dir "{torch}" torchvision' in DOCKERFILE


def test_the_matrix_names_the_oldest_and_the_newest(project: dict[str, Any]) -> None:
    oldest, newest = re.findall(r'^    "\$0" (\S+) (\S+)$', (ROOT / ".ci" / "matrix").read_text(), re.M)
    about = project["project"]
    pythons = [line.rpartition(" ")[2] for line in about["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    assert oldest[0] == pythons[0] == about["requires-python"].removeprefix(">=")
    assert newest == (pythons[-1], "current")
    assert f"torch>={oldest[1].removesuffix('.0')}" in about["dependencies"]


def test_the_sdist_holds_what_the_tests_read(project: dict[str, Any]) -> None:
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert all((ROOT / name.lstrip("/")).exists() for name in included)
    needed = {path.name for path in ROOT.glob("*.md")} | {".ci", ".dockerignore", "Dockerfile", "mkdocs.yml", "docs"}
    assert {f"/{name}" for name in needed} <= set(included)


def names(requirements: list[str]) -> set[str]:
    """The names of the packages that every Python needs."""
    return {re.split(r"[\[<>=; ]", line)[0] for line in requirements if "python_version" not in line}


def test_the_doctor_looks_for_every_dependency(project: dict[str, Any]) -> None:
    assert set(REQUIRED) == names(project["project"]["dependencies"])
    extras = project["project"]["optional-dependencies"]
    used = set().union(*(names(extras[name]) for name in extras if name not in ("all", "dev", "docs")))
    loggers = {"wandb", "mlflow-skinny"}
    assert set(OPTIONAL) == used | loggers and loggers <= names(extras["dev"])


def test_everything_that_names_the_version_names_the_same(project: dict[str, Any]) -> None:
    version = project["project"]["version"]
    headings = re.findall(r"^## \[(\S+)\] - (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0][0] == version and re.fullmatch(r"\d{4}-\d\d-\d\d", headings[0][1])
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^Version {re.escape(version.rpartition('.')[0])}, ", README, re.M)


def test_every_python_of_the_classifiers_was_tried(project: dict[str, Any]) -> None:
    """And no system is claimed but the one that was tried."""
    classifiers = project["project"]["classifiers"]
    pythons = {line.rpartition(" ")[2] for line in classifiers if re.search(r"Python :: 3\.\d+$", line)}
    tried = (ROOT / "docs" / "PLATFORMS.md").read_text(encoding="utf-8").partition("## What could not be tried")[0]
    assert pythons == set(re.findall(r"^\| (3\.\d+)\.", tried, re.M))
    systems = [line for line in classifiers if line.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]


def test_the_contributing_guide_names_files_that_exist() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = [name for name in re.findall(r"`([\w./-]+\.(?:py|md|toml))`", guide) if "NAME" not in name]
    assert len(named) > 25
    places = [ROOT, ROOT / "src" / "plrc", ROOT / "src" / "plrc" / "objectives", ROOT / "src" / "plrc" / "transfer"]
    places += [ROOT / "tests" / "transfer" / "labels"]
    for name in named:
        assert any((place / name).exists() for place in places), name


def licences(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "licences"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("metadata", "library", "refused"),
    [
        ("License-Expression: AGPL-3.0-or-later", "", True),
        ("Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)", "", True),
        ("License: BSD-3-Clause", "Name: x265\nLicense: GPLv2\n", True),
        ("", "GNU GENERAL PUBLIC LICENSE\n", True),
        ("License-Expression: MIT OR GPL-2.0-only", "", False),
        ("License-Expression: LGPL-3.0-only", "", False),
        ("License: MIT", "Name: libgcc\nLicense: GPL-3.0-or-later WITH GCC-exception-3.1\n", False),
    ],
)
def test_a_package_under_the_gpl_is_refused(metadata: str, library: str, refused: bool, tmp_path: Path) -> None:
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: other\nVersion: 1.0\n{metadata}\n".rstrip() + "\n")
    (info / "LICENSES.txt").write_text(library)
    (info / "RECORD").write_text("other-1.0.dist-info/METADATA,,\nother-1.0.dist-info/LICENSES.txt,,\n")
    done = licences(tmp_path)
    assert done.returncode == int(refused), done.stdout + done.stderr
    assert ("REFUSED other" in done.stdout) == refused


def test_no_installed_package_is_under_the_gpl() -> None:
    done = subprocess.run([sys.executable, str(ROOT / ".ci" / "licences")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
