"""A metric as the folder of a Space, so that `evaluate.load("user/name")` finds it on the Hub."""

import shutil
from pathlib import Path

from hf_ava_bench.evaluation import metric_path
from hf_ava_bench.files import write_text

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
