# /// script
# requires-python = ">=3.10"
# dependencies = ["nox>=2025.5.1"]
# ///
"""The sessions of this repository: `nox` alone is what CI runs, `nox --list` tells the rest.

`typecheck`, `tests`, `gpu`, `demo` and `bench` share one environment, `.nox/dev`, made by the session `dev`: torch is
installed once. `lint`, `alone`, `minimums`, `docs` and `build` have their own.
"""

import os
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nox
from packaging.requirements import Requirement
from packaging.version import Version

nox.needs_version = ">=2025.5.1"
nox.options.sessions = ["lint", "typecheck", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = ("-c", ".ci/constraints.txt")
PROJECTS: dict[str, dict[str, Any]] = {
    path.parent.name: nox.project.load_toml(path)["project"] for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
}
TEST_TOOLS = ["hypothesis>=6.100", "peft>=0.18", "pytest>=9.0", "pytest-cov>=5", "pytest-xdist>=3.5"]
DEV_TOOLS = [*TEST_TOOLS, "matplotlib", "mypy", "nox"]
DEV = ROOT / ".nox" / "dev" / ("Scripts" if os.name == "nt" else "bin")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# What a clean environment is asked about a wheel or sdist by its file name: version, license, and whether it compiles.
FIND_INSTALLED = """
import compileall, importlib.metadata, sys
name, version = sys.argv[1].removesuffix(".tar.gz").split("-")[:2]
found = importlib.metadata.distribution(name)
files = {str(file): file.locate() for file in found.files}
assert found.version == version, f"expected version {version}, found {found.version}"
assert f"{name}/py.typed" in files and any(file.endswith("licenses/LICENSE") for file in files), sorted(files)
assert compileall.compile_dir(files[f"{name}/__init__.py"].parent, quiet=1), f"{name} does not compile"
"""
# One thread in each process: small tensors gain nothing from more, and processes do not fight for cores.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def with_extras(dists: Iterable[str]) -> list[str]:
    """The arguments of `pip install` for packages, editable, with all their extras."""
    arguments: list[str] = []
    for dist in dists:
        extras = ",".join(PROJECTS[dist].get("optional-dependencies", {}))
        target = f"packages/{dist}[{extras}]" if extras else f"packages/{dist}"
        arguments += ["-e", target]
    return arguments


def split_posargs(session: nox.Session) -> tuple[list[str], list[str]]:
    """The packages named at the start of what follows `--` (all of them if none is), and the rest."""
    rest = list(session.posargs)
    dists: list[str] = []
    while rest and not rest[0].startswith("-"):
        dist = rest.pop(0)
        if dist not in PROJECTS:
            session.error(f"expected one of the packages {', '.join(PROJECTS)} after `--`, got {dist!r}")
        dists.append(dist)
    return dists or list(PROJECTS), rest


def select_options(script: Path, options: list[str]) -> list[str]:
    """Those options, with their values, that a script declares."""
    declared = script.read_text(encoding="utf-8")
    chosen, is_declared = [], False
    for option in options:
        if option.startswith("--"):
            is_declared = f'add_argument("{option.split("=")[0]}"' in declared
        if is_declared:
            chosen.append(option)
    return chosen


def python(session: nox.Session, *args: str) -> None:
    """Run Python of the shared environment."""
    session.run(str(DEV / "python"), *args, external=True, env=ONE_THREAD)


@nox.session(reuse_venv=True, default=False)
def dev(session: nox.Session) -> None:
    """Make the shared environment .nox/dev: all packages, editable, with their extras, and the tools."""
    session.log("installing torch and the packages: two minutes the first time")
    session.install(*with_extras(PROJECTS), *DEV_TOOLS, *CONSTRAINTS)


@nox.session(reuse_venv=True)
def lint(session: nox.Session) -> None:
    """Check format and style. `nox -s lint -- --fix` mends what can be mended."""
    if unknown := set(session.posargs) - {"--fix"}:
        session.error(f"expected nothing or --fix after `--`, got {' '.join(sorted(unknown))!r}")
    session.install("ruff", *CONSTRAINTS)
    fix = bool(session.posargs)
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")


@nox.session(venv_backend="none", requires=["dev"])
def typecheck(session: nox.Session) -> None:
    """Check types: mypy, strict, on what is shipped and on this file."""
    python(session, "-m", "mypy", *(f"packages/{dist}/src" for dist in PROJECTS), "noxfile.py")


@nox.session(venv_backend="none", requires=["dev"])
def tests(session: nox.Session) -> None:
    """Run the tests on all cores. `nox -s tests -- meda-cache -k entropy` is one package, and options of pytest."""
    dists, options = split_posargs(session)
    everything = dists == list(PROJECTS)
    paths = ["tests"] if everything else [f"tests/{dist}" for dist in dists]
    python(session, "-m", "pytest", "-n", "auto", "--dist", "loadfile", *paths, *options)


@nox.session(venv_backend="none", requires=["dev"], default=False)
def kernels(session: nox.Session) -> None:
    """Run the tests of the Triton kernels, in Triton's interpreter where there is no GPU."""
    dists, options = split_posargs(session)
    python(session, "-m", "pytest", "-k", "test_ops", *(f"tests/{dist}" for dist in dists), *options)


@nox.session(venv_backend="none", requires=["dev"], default=False)
def slow(session: nox.Session) -> None:
    """Run the tests that the default run leaves out because they take long: processes that are killed, trainings."""
    dists, options = split_posargs(session)
    paths = ["tests"] if dists == list(PROJECTS) else [f"tests/{dist}" for dist in dists]
    python(session, "-m", "pytest", "-m", "slow", *paths, *options)


@nox.session(venv_backend="none", requires=["dev"], default=False)
def gpu(session: nox.Session) -> None:
    """Run the tests that need a CUDA device, and the GPU benchmark of meda-cache if no package is named."""
    if shutil.which("nvidia-smi") is None:
        session.error("expected a CUDA device, but there is no nvidia-smi on this machine; `nox -s tests` needs none")
    dists, options = split_posargs(session)
    python(session, "-m", "pytest", "-m", "gpu", *(f"tests/{dist}" for dist in dists), *options)
    if not session.posargs:
        python(session, "benchmarks-hf/run.py", "meda_gpu")


@nox.session(python="3.10", default=False)
def minimums(session: nox.Session) -> None:
    """Run the tests with the oldest Python and the oldest versions that the packages allow."""
    dists, options = split_posargs(session)
    needed = with_siblings(dists)
    pins = Path(session.create_tmp()) / "minimums.txt"
    pins.write_text(
        "".join(f"{name}=={version}\n" for name, version in lower_bounds(needed).items()), encoding="utf-8"
    )
    # torchvision: the oldest transformers need it for AutoImageProcessor.
    session.install(*with_extras(needed), "torchvision>=0.20", *TEST_TOOLS, "-c", str(pins))
    session.run("pip", "freeze", silent=False)
    session.run("python", "-m", "pytest", *(f"tests/{dist}" for dist in dists), *options, env=ONE_THREAD)


def with_siblings(dists: Iterable[str]) -> list[str]:
    """These packages, and those of this repository that their extras name."""
    found = list(dists)
    for dist in found:
        for extra in PROJECTS[dist].get("optional-dependencies", {}).values():
            named = {Requirement(line).name for line in extra}
            found += [name for name in PROJECTS if name in named and name not in found]
    return found


def lower_bounds(dists: Iterable[str]) -> dict[str, Version]:
    """The oldest version of each requirement that all these packages allow."""
    bounds: dict[str, Version] = {}
    for dist in dists:
        extras = PROJECTS[dist].get("optional-dependencies", {}).values()
        for text in [*PROJECTS[dist].get("dependencies", []), *(line for extra in extras for line in extra)]:
            requirement = Requirement(text)
            lows = [Version(part.version) for part in requirement.specifier if part.operator in (">=", "==", "~=")]
            if lows:
                bounds[requirement.name] = max(*lows, bounds.get(requirement.name, Version("0")))
    return bounds


@nox.session(default=False)
def alone(session: nox.Session) -> None:
    """Install the wheel of one package with nothing but its requirements, and run its README."""
    dists, rest = split_posargs(session)
    if len(dists) != 1 or rest:
        session.error(
            f"expected one of the packages {', '.join(PROJECTS)} after `--`, got {session.posargs or 'nothing'}"
        )
    wheels = Path(session.create_tmp())
    for old in wheels.glob("*.whl"):
        old.unlink()
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), f"packages/{dists[0]}")
    session.install(*map(str, wheels.glob("*.whl")), *CONSTRAINTS)
    session.run("python", "-c", f"import {dists[0].replace('-', '_')}")
    session.run(
        "python",
        "-m",
        "support.markdown_examples",
        f"packages/{dists[0]}/README.md",
        "--alone",
        env={**ONE_THREAD, "PYTHONPATH": "tests"},
    )


def make_environment(session: nox.Session, version: str) -> str | None:
    """A clean environment with this version of Python: its interpreter, or None where there is no such Python."""
    folder = Path(session.create_tmp()) / f"python{version}"
    shutil.rmtree(folder, ignore_errors=True)
    managed = sorted(Path(os.environ.get("PYENV_ROOT", "-"), "versions").glob(f"{version}.*/bin/python"))
    wanted = str(managed[-1]) if managed else version
    session.run("virtualenv", "--quiet", "--python", wanted, str(folder), success_codes=[0, 1])
    interpreter = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    return str(interpreter) if interpreter.exists() else None


@nox.session(venv_backend="none", requires=["dev"], default=False)
def demo(session: nox.Session) -> None:
    """Let every package do its work once and write demo/index.html. `nox -s demo -- meda-cache --image DIR`."""
    dists, options = split_posargs(session)
    scripts = {dist: f"packages/{dist}/examples/demo.py" for dist in dists}
    present = {dist: script for dist, script in scripts.items() if (ROOT / script).exists()}
    if not present:
        session.error(f"expected packages/<package>/examples/demo.py, but {', '.join(dists)} has none")
    taken = {dist: select_options(ROOT / script, options) for dist, script in present.items()}
    if unknown := [option for option in options if not any(option in some for some in taken.values())]:
        session.error(f"expected options that a demo of {', '.join(present)} has, got {' '.join(unknown)}")
    for dist, script in present.items():
        shutil.rmtree(ROOT / "demo" / dist, ignore_errors=True)
        python(session, script, "--out", f"demo/{dist}", *taken[dist])
    python(session, "docs/demo/page.py", "demo", *present)
    python(session, "docs/demo/check.py", "demo", *present)


@nox.session(venv_backend="none", requires=["dev"], default=False)
def bench(session: nox.Session) -> None:
    """Run a benchmark, write its results and plot them. `nox -s bench -- diorama_render`."""
    python(session, "benchmarks-hf/run.py", *session.posargs)
    if "--quick" not in session.posargs:
        python(session, "benchmarks-hf/plot.py")
        python(session, "benchmarks-hf/page.py")


@nox.session(venv_backend="none", requires=["dev"], default=False)
def claims(session: nox.Session) -> None:
    """Say which claims of the papers hold on the nano models; `-- --run` measures them again first (hours).

    `nox -s claims -- --full mine/claims.md --classifier ID --data ID` does so with models and images of your own.
    """
    python(session, "benchmarks-hf/claims.py", *session.posargs)


@nox.session(reuse_venv=True, default=False)
def docs(session: nox.Session) -> None:
    """Build the site in site/, from the files of the repository; a broken link or anchor fails."""
    session.install("mkdocs-material", "mkdocstrings[python]", "ruff", *CONSTRAINTS)  # ruff formats signatures
    session.run("mkdocs", "build", "--strict", "--config-file", "docs/mkdocs.yml", env={"NO_MKDOCS_2_WARNING": "1"})
    session.log("see site/index.html; its search wants a server: python -m http.server --directory site")


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Make wheel and sdist of every package in dist/ and check them. `nox -s build -- meda-cache` does one.

    Wheels are built from the sdists, and both are checked by twine and for what they hold. On each Python from 3.10 to
    3.13 of this machine every wheel, and every sdist, is installed alone in a clean environment **without its
    requirements**, found by its name and version, and compiled. On the Python of the session every wheel is installed
    in a clean environment **with its requirements** and imported: torch for each package and each Python would take
    hours. `nox -s alone -- meda-cache` runs the README from the wheel as well, `nox -s minimums` the tests on 3.10.
    """
    dists, rest = split_posargs(session)
    if rest:
        session.error(f"expected packages after `--`, got {' '.join(rest)!r}")
    session.install("build", "twine", "virtualenv", *CONSTRAINTS)
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    for dist in dists:
        session.run("python", "-m", "build", "--outdir", "dist", f"packages/{dist}", silent=True)
    files = sorted(map(str, (ROOT / "dist").iterdir()))
    session.run("twine", "check", "--strict", *files)
    session.run("python", "-m", "support.distributions", "dist", *dists, env={"PYTHONPATH": "tests"})
    for version in PYTHONS:
        if clean := make_environment(session, version):
            pip_install = (clean, "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
            session.run(*pip_install, "hatchling", *CONSTRAINTS, external=True)  # what an sdist is built with
            for file in files:
                alone = ("--no-deps", "--no-build-isolation", "--force-reinstall")
                session.run(*pip_install, *alone, file, external=True)
                session.run(clean, "-c", FIND_INSTALLED, Path(file).name, external=True, log=False)
        else:
            session.warn(f"Python {version} is not on this machine: nothing was installed there")
    for dist in dists:
        clean = make_environment(session, ".".join(platform.python_version_tuple()[:2]))
        if clean is None:
            session.error("expected virtualenv to find the Python that runs nox")
        (wheel,) = (ROOT / "dist").glob(f"{dist.replace('-', '_')}-*.whl")
        session.run(clean, "-m", "pip", "--quiet", "install", str(wheel), *CONSTRAINTS, external=True)
        session.run(clean, "-m", "pip", "check", external=True)
        session.run(clean, "-c", f"import {dist.replace('-', '_')} as it; print(it.__version__)", external=True)
