"""Says what is wrong with the wheels and sdists that `nox -s build` made.

    PYTHONPATH=tests python -m support.distributions FOLDER [DIST ...]

A wheel has every file of `src/`, py.typed, the license and metadata, and nothing else: no test, no training script.
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from support.packages import Package, find_packages

IN_SDIST = ("CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml")


def list_sources(package: Package) -> set[str]:
    """The files under `src/` that git knows or would take, relative to it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src"]
    output = subprocess.run(command, cwd=package.folder, capture_output=True, text=True, check=True).stdout
    return {line.removeprefix("src/") for line in output.splitlines() if (package.folder / line).is_file()}


def check_wheel(names: set[str], sources: set[str], package: Package) -> list[str]:
    """What a wheel with these files lacks or should not have, one sentence each."""
    metadata = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    shipped = names - metadata
    problems = [f"lacks {name}" for name in sorted(sources - shipped)]
    problems += [f"should not have {name}" for name in sorted(shipped - sources)]
    if f"{package.name}/py.typed" not in shipped:
        problems.append("lacks py.typed")
    if not any(name.endswith("/licenses/LICENSE") for name in metadata):
        problems.append("lacks its LICENSE")
    return problems


def check_sdist(names: set[str], sources: set[str]) -> list[str]:
    """What an sdist with these files, relative to its one folder, lacks."""
    wanted = {*IN_SDIST, *(f"src/{name}" for name in sources)}
    return [f"lacks {name}" for name in sorted(wanted - names)]


def check_folder(folder: Path, packages: list[Package]) -> list[str]:
    """What is wrong with the distributions of these packages in a folder."""
    problems = []
    for package in packages:
        stem, sources = package.name, list_sources(package)
        for pattern in (f"{stem}-*.whl", f"{stem}-*.tar.gz"):
            found = list(folder.glob(pattern))
            if len(found) != 1:
                problems.append(f"{package.dist}: expected one {pattern} in {folder}, found {len(found)}")
                continue
            (path,) = found
            if path.suffix == ".whl":
                with zipfile.ZipFile(path) as wheel:
                    lacks = check_wheel(set(wheel.namelist()), sources, package)
            else:
                with tarfile.open(path) as sdist:
                    files = {member.name.partition("/")[2] for member in sdist if member.isfile()}
                    lacks = check_sdist(files, sources)
            problems += [f"{path.name} {text}" for text in lacks]
    return problems


def main() -> None:
    folder, *dists = sys.argv[1:]
    packages = [package for package in find_packages() if not dists or package.dist in dists]
    if problems := check_folder(Path(folder), packages):
        sys.exit("\n".join(problems))
    print(f"{2 * len(packages)} distributions hold what they should")


if __name__ == "__main__":
    main()
