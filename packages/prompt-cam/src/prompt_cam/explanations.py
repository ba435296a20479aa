"""Questions about images: where a class looks, which heads carry it, how two classes differ, what an edit changes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from prompt_cam.class_maps import Classes, compute_maps, find_rows
from prompt_cam.configuration_prompt_cam import Blur
from prompt_cam.figures import HeadRow, draw_heads
from prompt_cam.ranking import RANKINGS, HeadRanking, Ranking, rank_heads_of

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


class ExplanationMixin:
    """The part of [`PromptCAMForImageClassification`] that looks at what its prompts attend to."""

    def maps(
        self: Any,
        pixel_values: torch.Tensor,
        classes: Classes = None,
        normalize: str | None = "patches",
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Returns where class prompts look in the last layer, head by head.

        Only the rows of the classes asked for are computed; the attention of the backbone stays as it is (sdpa, ...).

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): images.
            classes (`int`, sequence of `int` or `torch.LongTensor`, *optional*):
                `None`: the predicted class of each image. A number: that class. A tensor `(batch_size,)`: one class
                for each image. A sequence: these classes for all images.
            normalize (`str`, *optional*, defaults to `"patches"`):
                `"patches"`: each map sums to 1. `None`: attention as the softmax over all tokens left it.
            interpolate_pos_encoding (`bool`, defaults to `False`): as in `forward`.
            **kwargs: more arguments of the backbone.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_heads, rows, columns)`; for a sequence of K classes
            `(batch_size, K, num_heads, rows, columns)`

        Raises:
            ValueError: if a class or `normalize` is not one of the choices.
        """
        if normalize not in ("patches", None):
            raise ValueError(f"`normalize` must be 'patches' or None, got {normalize!r}.")
        with torch.no_grad(), self._evaluating():
            look = self._look(pixel_values, interpolate_pos_encoding, **kwargs)
            maps = compute_maps(self._view(), look, find_rows(classes, look.logits), normalize)
        is_sequence = classes is not None and not isinstance(classes, (int, torch.Tensor))
        return maps if is_sequence else maps[:, 0]

    def rank_heads(
        self: Any,
        pixel_values: torch.Tensor,
        classes: int | torch.Tensor | None = None,
        ranking: Ranking = "greedy",
        blur: Blur | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> HeadRanking:
        """Returns the heads of the last layer by their importance for one class of each image (section 3.4).

        One forward pass, then single tokens: exact, and independent of the number of patches and classes.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): images.
            classes (`int` or `torch.LongTensor` of shape `(batch_size,)`, *optional*):
                One class for all images or one for each; the predicted ones if not given.
            ranking (`str`, defaults to `"greedy"`):
                `"greedy"`: the paper's; blurs one more head at a time, the one that costs least. `"leave_one_out"`:
                blurs each head alone. `"shapley"`: the mean over all orders, for at most 16 heads.
            blur (`str`, *optional*): `"patches"` or `"all_tokens"`, see [`blur_weights`]; the config's if not given.
            interpolate_pos_encoding (`bool`, defaults to `False`): as in `forward`.
            **kwargs: more arguments of the backbone.

        Returns:
            [`HeadRanking`], on the CPU

        Raises:
            ValueError: if a class, `ranking` or `blur` is not one of the choices.
        """
        if ranking not in RANKINGS:
            raise ValueError(f"`ranking` must be one of {', '.join(RANKINGS)}, got {ranking!r}.")
        blur = replace(self.prompt_config, blur=blur or self.prompt_config.blur).blur
        if classes is not None and not isinstance(classes, (int, torch.Tensor)):
            raise ValueError(f"`classes` must be one class, or a tensor of one for each image, got {classes!r}.")
        with torch.no_grad(), self._evaluating():
            look = self._look(pixel_values, interpolate_pos_encoding, **kwargs)
            rows = find_rows(classes, look.logits)
            return rank_heads_of(self._view(), look, rows[:, 0], self._score, ranking, blur)

    def explain(self: Any, image: Any, processor: Any, target: int | None = None, top_heads: int = 4) -> Any:
        """Returns a figure of the most important heads of one class over the original image.

        Args:
            image (`PIL.Image.Image`): the image, of any size.
            processor (`BaseImageProcessor`): of the backbone; its resize and crop are undone in the figure.
            target (`int`, *optional*): the class; the predicted one if not given.
            top_heads (`int`, defaults to 4): how many heads to show, by greedy ranking.

        Returns:
            `matplotlib.figure.Figure`; save it with `.savefig(path)`.

        Raises:
            ImportError: without matplotlib (`pip install "prompt-cam[plots]"`).
            TypeError: if the image is no PIL image.
            ValueError: if the class or the number of heads is out of range.
        """
        return compare_classes(self, image, processor, None if target is None else [target], top_heads)

    def compare_classes(self: Any, image: Any, processor: Any, classes: Sequence[int], top_heads: int = 4) -> Any:
        """Returns a figure of how several classes see one image, such as the predicted and the true one.

        Args:
            image, processor, top_heads: as in [`explain`].
            classes (sequence of `int`): one row for each.

        Returns:
            `matplotlib.figure.Figure`

        Raises:
            ImportError, TypeError, ValueError: as [`explain`].
        """
        return compare_classes(self, image, processor, list(classes), top_heads)

    def counterfactual(self: Any, image: Any, edited: Any, processor: Any, top_heads: int = 4) -> Counterfactual:
        """Returns what an edit of an image changes: prediction, probability, and where the class looks.

        Args:
            image (`PIL.Image.Image`): before.
            edited (`PIL.Image.Image`): after, of the same size, say with a trait painted over.
            processor, top_heads: as in [`explain`].

        Returns:
            [`Counterfactual`], with a figure

        Raises:
            ImportError, TypeError: as [`explain`].
            ValueError: if the sizes differ.
        """
        return counterfactual(self, image, edited, processor, top_heads)
