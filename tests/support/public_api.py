"""Reads what a package promises: its `__all__`, the API table of its README, and the examples in its docstrings."""

import doctest
import inspect
import re
from collections.abc import Iterator
from types import ModuleType

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def read_api_table(readme: str) -> list[str]:
    """The names in the first column of the first table under a heading with the word API, in alphabetical order.

    A cell names one or more objects in backticks, with or without their arguments: "`load(world, split)`, `stream`".
    """
    section = re.search(r"^#+[^\n]*\bAPI\b[^\n]*\n(.*?)(?=^#|\Z)", readme, re.MULTILINE | re.DOTALL)
    table = re.search(r"(?:^\|[^\n]*\n?)+", section[1], re.MULTILINE) if section else None
    rows = table[0].splitlines()[2:] if table else []  # after the header and the rule
    return sorted(name for row in rows for name in re.findall(r"`(\w+)[^`]*`", row.split("|")[1]))


def public_names(module: ModuleType) -> list[str]:
    """`__all__` without `__version__`, in alphabetical order."""
    return sorted(set(module.__all__) - {"__version__"})


class _FencedParser(doctest.DocTestParser):
    """Reads `>>>` examples inside ```python fences, whose closing line is not part of the expected output."""

    def parse(self, string: str, name: str = "<string>") -> list[str | doctest.Example]:
        return super().parse(re.sub(r"^\s*```.*$", "", string, flags=re.MULTILINE), name)


def find_examples(module: ModuleType) -> Iterator[doctest.DocTest]:
    """The docstrings with examples of what a module defines."""
    yield from doctest.DocTestFinder(parser=_FencedParser(), exclude_empty=True).find(module)


def run_examples(module: ModuleType) -> list[str]:
    """What is wrong with the examples of a module: one report for each that gives another result."""
    failures: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    for test in find_examples(module):
        runner.run(test, out=failures.append)
    return failures


def check_docstrings(module: ModuleType) -> list[str]:
    """The public functions and classes whose docstring has no example that runs, one sentence each."""
    problems = []
    for name in public_names(module):
        value = getattr(module, name)
        if not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        text = inspect.getdoc(value) or ""
        section = text.partition("Example:")[2]
        examples = _FencedParser().get_examples(section)
        if not any(not example.options.get(doctest.SKIP) for example in examples):
            problems.append(f"{module.__name__}.{name} has no `Example:` with a `>>>` line that runs")
    return problems
