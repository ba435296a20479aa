"""Packages import what they may, declare what they import, and importing one has no side effect."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support import import_rules
from support.packages import ROOT, Package, find_packages, read_package

PACKAGES = find_packages()
each_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.dist)

# Heavy or optional modules that `import <package>` leaves alone, unless what it requires imports them itself.
NOT_AT_IMPORT = {"torch", "triton", "matplotlib", "pandas", "sklearn", "accelerate", "transformers"}

# Imports what the package imports from others, then the package, and prints what the second step alone changed.
PROBE = """
import importlib, json, random, sys
from support import no_network

name, statements, required = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
for statement in statements:
    exec(statement, {})
import numpy.random

torch, modeling = sys.modules.get("torch"), sys.modules.get("transformers.modeling_utils")


def random_states():
    states = {"random": random.getstate(), "numpy": numpy.random.get_state()}
    return {key: repr(value) for key, value in {**states, "torch": torch and torch.get_rng_state().tolist()}.items()}


def bindings():
    theirs = [(key, vars(module)) for key, module in sys.modules.items() if key.partition(".")[0] in required]
    return {f"{key}.{attribute}": id(value) for key, values in theirs for attribute, value in values.items()}


def attention():
    return set(modeling.ALL_ATTENTION_FUNCTIONS.valid_keys()) if modeling else set()


modules, states, bound, registered = set(sys.modules), random_states(), bindings(), attention()
no_network.block()
importlib.import_module(name)
after = bindings()
result = {
    "modules": sorted(set(sys.modules) - modules),
    "random": [key for key, value in random_states().items() if value != states[key]],
    "patched": sorted(key for key, value in bound.items() if after.get(key) != value),
    "registered": sorted(attention() - registered),
}
print()
print(json.dumps(result))
"""


def probe(package: Package, *paths: Path) -> dict[str, list[str]]:
    """What importing a package changes in a fresh process."""
    search = os.pathsep.join(map(str, [*paths, ROOT / "tests"]))
    result = subprocess.run(
        [
            sys.executable,
            *("-c", PROBE, package.name),
            json.dumps(import_rules.import_statements(package)),
            json.dumps(sorted(package.required)),
        ],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    changes = json.loads(result.stdout.splitlines()[-1])
    changes["modules"] = sorted({name.partition(".")[0] for name in changes["modules"]} & NOT_AT_IMPORT)
    return changes


@each_package
def test_imports_follow_the_rules(package: Package) -> None:
    assert import_rules.check_imports(package, PACKAGES) == []


@each_package
def test_requirements_are_allowed_and_used(package: Package) -> None:
    assert import_rules.check_requirements(package) == []


@each_package
def test_importing_a_package_has_no_side_effect(package: Package) -> None:
    assert probe(package) == {"modules": [], "random": [], "patched": [], "registered": []}


def test_there_are_packages_to_check() -> None:
    assert {package.dist for package in PACKAGES} >= {"hf-diorama", "meda-cache"}


# The checkers themselves, on packages made to break each rule.


def make_package(folder: Path, dist: str, init: str, dependencies: str = "[]", extras: str = "{}") -> Package:
    source = folder / "packages" / dist / "src" / dist.replace("-", "_")
    source.mkdir(parents=True)
    (source / "__init__.py").write_text(textwrap.dedent(init))
    pyproject = f'[project]\nname = "{dist}"\ndependencies = {dependencies}\noptional-dependencies = {extras}\n'
    (folder / "packages" / dist / "pyproject.toml").write_text(pyproject)
    return read_package(folder / "packages" / dist)


def test_checker_finds_each_forbidden_import(tmp_path: Path) -> None:
    init = """
        import json
        from typing import TYPE_CHECKING
        import numpy.linalg
        import sklearn
        from . import part
        if TYPE_CHECKING:
            import pandas
        class Loader:
            import matplotlib
        def load():
            import sklearn
            import rich
            import meda_cache
    """
    package = make_package(tmp_path, "hf-diorama", init, '["numpy>=1"]', '{real = ["scikit-learn"]}')
    other = make_package(tmp_path, "meda-cache", "")
    assert [text.partition(":")[2] for text in import_rules.check_imports(package, [package, other])] == [
        "5 imports sklearn at module level: not a requirement; extras are imported in the function using them",
        "10 imports matplotlib at module level: not a requirement; extras are imported in the function using them",
        "13 imports rich: neither a requirement nor in an extra",
        "14 imports meda_cache: a package imports none of the others",
    ]


def test_an_extra_may_stand_at_the_top_of_a_file_that_importing_the_package_does_not_run(tmp_path: Path) -> None:
    init = """
        from hf_diorama.eager import load
        def train():
            from hf_diorama.lazy import Trainer
    """
    package = make_package(tmp_path, "hf-diorama", init, "[]", '{models = ["torch"]}')
    for name in ("eager", "lazy"):
        (package.source / f"{name}.py").write_text("import torch\nimport rich\n")
    assert [
        text.partition(": ")[0].partition("src/")[2] for text in import_rules.check_imports(package, [package])
    ] == [
        "hf_diorama/eager.py:1 imports torch at module level",
        "hf_diorama/eager.py:2 imports rich at module level",
        "hf_diorama/lazy.py:2 imports rich at module level",
    ]


def test_checker_finds_forbidden_and_unused_requirements(tmp_path: Path) -> None:
    package = make_package(tmp_path, "hf-diorama", "import torch, numpy", '["torch", "numpy", "datasets"]')
    assert import_rules.check_requirements(package) == [
        "hf-diorama requires torch: not allowed",
        "hf-diorama requires datasets and never imports it",
    ]
    unknown = make_package(tmp_path, "new-package", "")
    assert import_rules.check_requirements(unknown) == ["new-package has no row in ALLOWED_REQUIREMENTS"]


def test_probe_finds_side_effects(tmp_path: Path) -> None:
    init = """
        import random
        from importlib import import_module
        import numpy
        import_module("pandas")
        numpy.random.rand()
        random.random()
        numpy.mean = print
    """
    package = make_package(tmp_path, "impolite", init, '["numpy"]')
    changes = probe(package, package.source.parent)
    assert changes["modules"] == ["pandas"]
    assert changes["random"] == ["random", "numpy"]
    assert changes["patched"] == ["numpy.mean"]


def test_probe_finds_a_connection(tmp_path: Path) -> None:
    init = """
        import socket
        socket.create_connection(("10.0.0.1", 80))
    """
    package = make_package(tmp_path, "talkative", init)
    with pytest.raises(AssertionError, match="NetworkBlockedError"):
        probe(package, package.source.parent)


def test_probe_finds_a_registered_attention_function(tmp_path: Path) -> None:
    init = """
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        ALL_ATTENTION_FUNCTIONS.register("mine", print)
    """
    package = make_package(tmp_path, "patching", init, '["torch", "transformers"]')
    assert probe(package, package.source.parent)["registered"] == ["mine"]
