"""Versions, changelogs and licenses of the packages, and the checker of their distributions."""

import re
from pathlib import Path

import pytest

from support import distributions
from support.packages import Package, find_packages

ROOT = Path(__file__).resolve().parents[1]
each_package = pytest.mark.parametrize("package", find_packages(), ids=lambda package: package.dist)


@each_package
def test_changelog_has_the_version_of_the_package(package: Package) -> None:
    init = (package.source / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', init, re.MULTILINE)  # where hatchling reads it
    text = (package.folder / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[?(\d+\.\d+\.\d+)", text, re.MULTILINE)
    assert headings[0] == version, f"the newest heading of the changelog is {headings[0]}, the package is {version}"
    assert len(headings) == len(set(headings))


@each_package
def test_license_is_that_of_the_repository(package: Package) -> None:
    license_text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert (package.folder / "LICENSE").read_text(encoding="utf-8") == license_text


@each_package
def test_sources_have_what_a_wheel_needs(package: Package) -> None:
    sources = distributions.list_sources(package)
    assert {f"{package.name}/__init__.py", f"{package.name}/py.typed"} <= sources
    assert not [
        name for name in sources if name.startswith(("tests/", "training/")) or not name.startswith(package.name)
    ]


def test_wheel_with_too_little_or_too_much_is_found(tmp_path: Path) -> None:
    package = Package(tmp_path, "a-b", frozenset(), {})
    sources = {"a_b/__init__.py", "a_b/py.typed", "a_b/models/nano/model.safetensors"}
    whole = sources | {"a_b-1.0.dist-info/METADATA", "a_b-1.0.dist-info/licenses/LICENSE"}
    assert distributions.check_wheel(whole, sources, package) == []
    broken = (whole | {"training/train.py"}) - {"a_b/models/nano/model.safetensors", "a_b/py.typed"}
    broken -= {"a_b-1.0.dist-info/licenses/LICENSE"}
    assert distributions.check_wheel(broken, sources, package) == [
        "lacks a_b/models/nano/model.safetensors",
        "lacks a_b/py.typed",
        "should not have training/train.py",
        "lacks py.typed",
        "lacks its LICENSE",
    ]


def test_sdist_that_lacks_a_file_is_found() -> None:
    names = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md", "src/a_b/__init__.py"}
    assert distributions.check_sdist(names | {"pyproject.toml"}, {"a_b/__init__.py"}) == []
    assert distributions.check_sdist(names, {"a_b/__init__.py", "a_b/x.py"}) == [
        "lacks pyproject.toml",
        "lacks src/a_b/x.py",
    ]


def test_missing_distributions_are_found(tmp_path: Path) -> None:
    problems = distributions.check_folder(tmp_path, find_packages()[:1])
    assert [problem.partition(": ")[2].split(" in ")[0] for problem in problems] == [
        "expected one finer_cam-*.whl",
        "expected one finer_cam-*.tar.gz",
    ]
