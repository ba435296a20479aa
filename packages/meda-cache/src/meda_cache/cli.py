"""The command `meda-cache`: writes what `generate` needs to be given a compressed cache by name."""

import argparse
import sys
from importlib import resources
from pathlib import Path


def export_custom_generate(folder: Path) -> Path:
    """Writes `custom_generate/generate.py` and its requirements into a folder, and returns it.

    `model.generate(**inputs, custom_generate=folder, trust_remote_code=True, keep_ratio=0.2)` then generates with a
    [`MedaCache`]; put the folder on the Hub and its name does the same.

    Raises:
        FileExistsError: if the folder holds another `custom_generate`.
    """
    target = folder / "custom_generate"
    source = resources.files("meda_cache") / "custom_generate"
    texts = {
        "generate.py": (source / "generate.py").read_text(encoding="utf-8"),
        "requirements.txt": "meda-cache\n",
    }
    if target.exists() and not {path.name for path in target.iterdir()} <= {*texts, "__pycache__"}:
        raise FileExistsError(f"Expected {target} to be free, but it holds other files; choose another folder.")
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        partial = target / f"{name}.part"
        partial.write_text(text, encoding="utf-8")
        partial.replace(target / name)
    return target


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(prog="meda-cache", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="export")
    export = commands.add_parser("export", help="write a folder for others to use")
    kinds = export.add_subparsers(required=True, metavar="custom-generate")
    custom = kinds.add_parser("custom-generate", help="for `model.generate(..., custom_generate=DIR)`")
    custom.add_argument("folder", type=Path, metavar="DIR")
    args = parser.parse_args(arguments)
    try:
        target = export_custom_generate(args.folder)
    except OSError as error:
        sys.stderr.write(f"meda-cache: {error}\n")
        return 1
    sys.stdout.write(
        f"{target}\nmodel.generate(**inputs, custom_generate={str(args.folder)!r}, trust_remote_code=True, "
        "keep_ratio=0.2)\n"
    )
    return 0
