"""Who may import whom: reads the imports of a package with `ast` and lists what breaks the rules."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.packages import Package

# What a package may require at most. A new row is a decision about the design, not a formality.
ALLOWED_REQUIREMENTS = {
    "finer-cam": {"torch", "transformers", "PIL", "safetensors"},
    "hf-ava-bench": {"datasets", "evaluate", "PIL", "numpy"},
    "hf-compbench": {"datasets", "evaluate", "PIL", "numpy"},
    "hf-diorama": {"numpy", "PIL", "datasets"},
    "meda-cache": {"torch", "transformers"},
    "partial-tune": {"torch", "numpy", "safetensors"},
    "peft-ensemble": {
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "datasets",
        "huggingface_hub",
        "safetensors",
        "PIL",
    },
    "prompt-cam": {"torch", "transformers", "safetensors", "huggingface_hub"},
    "taxaclip": {"torch", "transformers", "safetensors", "huggingface_hub", "numpy", "pyarrow", "PIL"},
}
# The only imports from one package of this repository into another, through the extra `mini`.
ALLOWED_EDGES = {("hf-ava-bench", "hf_diorama"), ("hf-compbench", "hf_diorama")}


@dataclass(frozen=True)
class Import:
    """One imported module, where it stands, and whether importing the file runs it."""

    module: str
    statement: str
    path: Path
    line: int
    at_import: bool

    @property
    def top(self) -> str:
        """The first part of the dotted name."""
        return self.module.partition(".")[0]


def _walk(node: ast.AST, at_import: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, at_import
        inside_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from _walk(child, at_import and not inside_function)


def read_imports(path: Path) -> list[Import]:
    """The absolute imports of a file. Those under `if TYPE_CHECKING:` are left out: they never run."""
    found = []
    for node, at_import in _walk(ast.parse(path.read_text(encoding="utf-8")), True):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            modules = [node.module] if node.level == 0 and node.module else []
        found += [Import(module, ast.unparse(node), path, node.lineno, at_import) for module in modules]
    return found


def read_package_imports(package: Package) -> list[Import]:
    """The imports of all files of a package that are neither its own nor the standard library's."""
    own = sys.stdlib_module_names | {package.name}
    files = sorted(package.source.rglob("*.py"))
    return [item for path in files for item in read_imports(path) if item.top not in own]


def files_run_by_import(package: Package) -> set[Path]:
    """The files of a package that `import <package>` runs: `__init__.py`, and what these import at module level.

    A file outside of this set is imported where an extra is asked for, and may name the extra at its top.
    """
    done: set[Path] = set()
    todo = {package.source / "__init__.py"}
    while todo:
        path = todo.pop()
        done.add(path)
        for item in read_imports(path) if path.exists() else []:
            if item.at_import and item.top == package.name:
                file = package.source.joinpath(*item.module.split(".")[1:])
                todo |= {file.with_suffix(".py"), file / "__init__.py"} - done
    return done


def check_imports(package: Package, packages: list[Package]) -> list[str]:
    """What a package imports against the rules, one sentence each."""
    run = files_run_by_import(package)
    extras = frozenset().union(*package.extras.values())
    siblings = {other.name for other in packages} - {package.name}
    problems = []
    for item in read_package_imports(package):
        where = f"{item.path.relative_to(package.folder)}:{item.line} imports {item.module}"
        if item.top in siblings and (package.dist, item.top) not in ALLOWED_EDGES:
            problems.append(f"{where}: a package imports none of the others")
        elif item.at_import and item.top not in package.required and (item.path in run or item.top not in extras):
            problems.append(
                f"{where} at module level: not a requirement; extras are imported in the function using them"
            )
        elif item.top not in package.required | extras:
            problems.append(f"{where}: neither a requirement nor in an extra")
    return problems


def check_requirements(package: Package) -> list[str]:
    """What a package declares against the rules, one sentence each."""
    used = {item.top for item in read_package_imports(package)}
    allowed = ALLOWED_REQUIREMENTS.get(package.dist)
    if allowed is None:
        return [f"{package.dist} has no row in ALLOWED_REQUIREMENTS"]
    problems = [f"{package.dist} requires {name}: not allowed" for name in sorted(package.required - allowed)]
    problems += [f"{package.dist} requires {name} and never imports it" for name in sorted(package.required - used)]
    return problems


def import_statements(package: Package) -> list[str]:
    """The statements by which importing a package reaches third-party modules first-hand."""
    statements = {item.statement for item in read_package_imports(package) if item.at_import}
    return sorted(statements | {f"import {name}" for name in package.required})
