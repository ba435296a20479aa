"""Questions about single images: what carries the class, how two classes see the image, what an edit changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from prompt_cam.figures import HeadRow, draw_heads
from prompt_cam.ranking import HeadRanking

if TYPE_CHECKING:
    from prompt_cam.modeling_prompt_cam import PromptCAMForImageClassification


@dataclass(frozen=True)
class Counterfactual:
    """What an edit of an image changes.

    Args:
        classes (`tuple[int, int]`): predicted before and after.
        names (`tuple[str, str]`): their names.
        probabilities (`tuple[float, float]`): of the class predicted before, before and after.
        maps (`torch.Tensor` of shape `(2, num_heads, rows, columns)`): of that class, before and after.
        order (`list[int]`): heads by their importance before the edit.
        figure (`matplotlib.figure.Figure`, *optional*): both images with the top heads, where matplotlib is there.

    Example:

    ```python
    >>> import torch
    >>> from prompt_cam import Counterfactual
    >>> edit = Counterfactual((3, 5), ("finch", "heron"), (0.9, 0.2), torch.zeros(2, 4, 8, 8), [1, 0, 2, 3])
    >>> edit.flipped
    True

    ```
    """

    classes: tuple[int, int]
    names: tuple[str, str]
    probabilities: tuple[float, float]
    maps: torch.Tensor
    order: list[int]
    figure: Any = None

    @property
    def flipped(self) -> bool:
        """Whether another class is predicted."""
        return self.classes[0] != self.classes[1]

    def to_dict(self) -> dict[str, Any]:
        """Returns numbers and names, without maps and figure."""
        kept = {name: value for name, value in vars(self).items() if name not in ("maps", "figure")}
        return {**kept, "flipped": self.flipped}


def _prepare(
    model: "PromptCAMForImageClassification", images: Sequence[Any], processor: Any, top: int
) -> dict[str, Any]:
    """Returns the inputs of the model, after checking what was handed over."""
    if top < 1:
        raise ValueError(f"`top_heads` must be at least 1, got {top}.")
    for image in images:
        if not hasattr(image, "convert"):
            kind = type(image).__name__
            raise TypeError(f"Expected a PIL image, got {kind}; tensors go to `maps` and `rank_heads`.")
    if len({image.size for image in images}) > 1:
        raise ValueError(f"Expected an edit of the same size, got {[image.size for image in images]}.")
    inputs = processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
    return {name: value.to(next(model.head.parameters()).device) for name, value in inputs.items()}


def _name(model: "PromptCAMForImageClassification", index: int) -> str:
    return (model.prompt_config.id2label or {}).get(index, f"class {index}")


def _row(image: Any, title: str, maps: torch.Tensor, ranked: HeadRanking, top: int, batch_index: int = 0) -> HeadRow:
    heads = ranked.order[batch_index, :top].tolist()
    return HeadRow(image, title, maps[heads], [f"head {head}" for head in heads])


def compare_classes(
    model: "PromptCAMForImageClassification", image: Any, processor: Any, classes: Sequence[int] | None, top: int
) -> Any:
    """Returns the figure of [`~PromptCAMForImageClassification.compare_classes`]."""
    inputs = _prepare(model, [image], processor, top)
    probabilities = model.predict(**inputs)[0]
    if classes is None:
        classes = [int(probabilities.argmax())]
    rows = []
    for index in classes:
        ranked = model.rank_heads(**inputs, classes=index)
        maps = model.maps(**inputs, classes=index)[0]
        rows.append(_row(image, f"{_name(model, index)}, {probabilities[index]:.0%}", maps, ranked, top))
    return draw_heads(rows, processor)


def counterfactual(
    model: "PromptCAMForImageClassification", image: Any, edited: Any, processor: Any, top: int
) -> Counterfactual:
    """Returns the result of [`~PromptCAMForImageClassification.counterfactual`]."""
    inputs = _prepare(model, [image, edited], processor, top)
    probabilities = model.predict(**inputs)
    before, after = probabilities.argmax(dim=1).tolist()
    ranked = model.rank_heads(**inputs, classes=before)
    maps = model.maps(**inputs, classes=before)
    names = (_name(model, before), _name(model, after))
    values = (float(probabilities[0, before]), float(probabilities[1, before]))
    rows = [
        _row(image, f"{names[0]}, {values[0]:.0%}", maps[0], ranked, top),
        _row(edited, f"edited: {names[1]}\n{names[0]} now {values[1]:.0%}", maps[1], ranked, top),
    ]
    figure = draw_heads(rows, processor)
    return Counterfactual((before, after), names, values, maps, ranked.order[0].tolist(), figure)
