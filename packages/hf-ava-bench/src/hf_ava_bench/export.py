"""What other tools read: a metric as the folder of a Space, and items as the JSON files of the released code."""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from hf_ava_bench.abilities import find_ability
from hf_ava_bench.data import load_ability, read_image
from hf_ava_bench.evaluation import metric_path
from hf_ava_bench.files import write_bytes, write_text
from hf_ava_bench.formats import to_conversation, to_question, write_json

APP = """import evaluate
from evaluate.utils import launch_gradio_widget

launch_gradio_widget(evaluate.load("{name}.py"))
"""


def export_space(name: str, out: str | Path) -> Path:
    """Writes the folder of a Space with a metric: its script, its card, its requirements and its widget.

    Upload it with `huggingface_hub.upload_folder(folder_path=out, repo_id="user/name", repo_type="space")`; then
    `evaluate.load("user/name")` works.

    Args:
        name (`str`): one of [`list_metrics`].
        out (`str` or `Path`): the folder; it must not hold anything yet.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: for an unknown metric.
        FileExistsError: if the folder holds something.

    Example:

    ```python
    >>> from hf_ava_bench import export_space
    >>> sorted(path.name for path in export_space("giou", "space").iterdir())
    ['README.md', 'app.py', 'giou.py', 'requirements.txt']

    ```
    """
    from hf_ava_bench import __version__

    source, folder = Path(metric_path(name)), Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"Expected a new or empty folder, but {folder} holds something; choose another.")
    folder.mkdir(parents=True, exist_ok=True)
    for path in (source / f"{name}.py", source / "README.md"):
        shutil.copyfile(path, folder / path.name)
    write_text(folder / "requirements.txt", f"hf-ava-bench=={__version__}\ngradio\n")
    write_text(folder / "app.py", APP.format(name=name))
    return folder


def export_json(
    out: str | Path,
    source: str = "hub",
    abilities: Sequence[str] = (),
    *,
    splits: Sequence[str] = ("train", "test"),
    **options: Any,
) -> Path:
    """Writes items as the files that the released code trains and tests on, with their images as they are.

    For each ability `<Config>/train.json`, `<Config>/questions.json` with `<Config>/ground_truth.json`, and
    `<Config>/images`. `load_ability(..., source="path:OUT")` reads them again.

    Args:
        out (`str` or `Path`): the folder.
        source (`str`, defaults to `"hub"`): as in [`load_ability`].
        abilities (sequence of `str`): names of abilities.
        splits (sequence of `str`, defaults to `("train", "test")`): either or both of them.
        **options: passed to [`load_ability`], e.g. `n` or `seed`.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: for unknown abilities or splits, or none.

    Example:

    ```python
    >>> from hf_ava_bench import export_json, load_ability
    >>> folder = export_json("released", "mini", ["ocr"], n=2, image_size=32)
    >>> sorted(path.name for path in (folder / "OCR").iterdir())
    ['ground_truth.json', 'images', 'questions.json', 'train.json']
    >>> load_ability("ocr", f"path:{folder}", "test")[0]["question"]
    'What is written in the red box?'

    ```
    """
    chosen = [find_ability(name) for name in abilities]
    if not chosen or not splits or not set(splits) <= {"train", "test"}:
        raise ValueError(f"Expected abilities, and splits of train and test, got {abilities!r} and {splits!r}.")
    for ability in chosen:
        folder = Path(out) / ability.hub_name
        for split in splits:
            table = load_ability(ability.id, source, split, **options)
            stored = table.cast_column("image", datasets.Image(decode=False))
            rows = [(row, f"{ability.hub_name}/images/{_write_image(row, folder)}") for row in stored]
            if split == "train":
                write_json(folder / "train.json", [to_conversation(row, path) for row, path in rows])
                continue
            truth = [{"question_id": r["id"], "answer": r["answer"], "dataset_type": r["source"]} for r, _ in rows]
            write_json(folder / "ground_truth.json", truth)
            write_json(folder / "questions.json", [to_question(row, path) for row, path in rows])
    return Path(out)


def _write_image(row: dict[str, Any], folder: Path) -> str:
    """Writes the image of a row under its id and returns the name of the file; an id may hold anything."""
    data = read_image(row["image"])
    with Image.open(io.BytesIO(data)) as image:
        suffix = (image.format or "png").lower()
    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in row["id"])
    write_bytes(folder / "images" / f"{plain}.{suffix}", data)
    return f"{plain}.{suffix}"
