"""The nano models that ship with the package."""

from pathlib import Path

MODELS = Path(__file__).parent / "models"


def list_models() -> list[str]:
    """Returns the names of the nano models that ship with the package, sorted.

    Returns:
        `list[str]`

    Example:

    ```python
    >>> import hf_diorama as dio
    >>> "vit-nano" in dio.list_models()
    True

    ```
    """
    return sorted(path.parent.name for path in MODELS.glob("*/config.json"))


def model_path(name: str) -> str:
    """Returns the folder of a nano model, for `from_pretrained`. Loading it needs the extra `models`.

    Args:
        name (`str`): one of [`list_models`].

    Returns:
        `str`: path of a folder with weights, configuration and processor.

    Raises:
        ValueError: if there is no such model.

    Example:

    ```python
    >>> import hf_diorama as dio
    >>> from transformers import AutoModelForImageClassification
    >>> model = AutoModelForImageClassification.from_pretrained(dio.model_path("vit-nano"))
    >>> model.config.num_labels
    96

    ```
    """
    if name not in list_models():
        raise ValueError(f"Expected a model ({', '.join(list_models()) or 'none is installed'}), got {name!r}.")
    return str(MODELS / name)
