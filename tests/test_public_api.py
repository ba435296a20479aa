"""Each package's public names are those its README lists, and their examples run."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support import public_api
from support.packages import Package, find_packages

PACKAGES = find_packages()
MODULES = [
    ".".join(path.relative_to(package.source.parent).with_suffix("").parts).removesuffix(".__init__")
    for package in PACKAGES
    for path in sorted(package.source.rglob("*.py"))
    if path.stem != "__main__"
]
each_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.dist)


@each_package
def test_public_names_are_the_readme_s_api_table(package: Package) -> None:
    readme = (package.folder / "README.md").read_text(encoding="utf-8")
    assert public_api.public_names(importlib.import_module(package.name)) == public_api.read_api_table(readme)


@each_package
def test_public_names_have_an_example(package: Package) -> None:
    assert public_api.check_docstrings(importlib.import_module(package.name)) == []


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failures = public_api.run_examples(importlib.import_module(name))
    assert not failures, "\n".join(failures)


# The checkers themselves.


def module_from(source: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("made_up")
    monkeypatch.setitem(sys.modules, "made_up", module)
    exec(source, module.__dict__)
    return module


def test_api_table_is_read_from_its_section_only() -> None:
    readme = "| `not_me` | x |\n# Pkg\n## API\n\nwords\n\n| name | what |\n|---|---|\n"
    readme += "| `load(world, n=1)`, `stream` | `nor_me` |\n| `Cache` | x |\n\n| `later` | x |\n|--|--|\n## Next\n"
    assert public_api.read_api_table(readme) == ["Cache", "load", "stream"]
    assert public_api.read_api_table("# No table\n") == []


def test_missing_and_skipped_examples_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    source = '''
__all__ = ["LIMIT", "__version__", "bare", "fine", "skipped"]
LIMIT, __version__ = 3, "0.1"
def bare():
    """Text."""
def fine():
    """Text.

    Example:

    ```python
    >>> 1 + 1
    2
    ```
    """
def skipped():
    """Text.

    Example:
    >>> 1 + 1  # doctest: +SKIP
    """
'''
    module = module_from(source, monkeypatch)
    assert public_api.public_names(module) == ["LIMIT", "bare", "fine", "skipped"]
    assert [problem.split(" ")[0] for problem in public_api.check_docstrings(module)] == [
        "made_up.bare",
        "made_up.skipped",
    ]
    assert public_api.run_examples(module) == []


def test_wrong_and_raising_examples_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    source = '''
def wrong():
    """
    ```python
    >>> 1 + 1
    3

    ```
    """
def raising():
    """
    >>> 1 / 0
    """
'''
    failures = public_api.run_examples(module_from(source, monkeypatch))
    assert len(failures) == 2
    assert "Expected:\n    3" in failures[1]
    assert "ZeroDivisionError" in failures[0]
