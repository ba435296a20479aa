"""The packages of this repository, as their pyproject.toml files describe them."""

import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]

# Distributions whose module has another name.
MODULE_OF = {"pillow": "PIL", "scikit-learn": "sklearn", "faiss-cpu": "faiss", "umap-learn": "umap"}


def module_name(dist: str) -> str:
    """The top-level module that a distribution brings."""
    return MODULE_OF.get(dist, dist.replace("-", "_"))


@dataclass(frozen=True)
class Package:
    """One folder under packages/: its names, and the top-level modules that it declares."""

    folder: Path
    dist: str
    required: frozenset[str]
    extras: dict[str, frozenset[str]]

    @property
    def name(self) -> str:
        """The import name."""
        return module_name(self.dist)

    @property
    def source(self) -> Path:
        """The folder that is imported."""
        return self.folder / "src" / self.name


def _modules(requirements: list[str]) -> frozenset[str]:
    return frozenset(module_name(canonicalize_name(Requirement(text).name)) for text in requirements)


def read_package(folder: Path) -> Package:
    """The package in a folder."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: _modules(texts) for name, texts in project.get("optional-dependencies", {}).items()}
    return Package(folder, project["name"], _modules(project.get("dependencies", [])), extras)


def find_packages(root: Path = ROOT) -> list[Package]:
    """All packages, by name."""
    return [read_package(path.parent) for path in sorted(root.glob("packages/*/pyproject.toml"))]
