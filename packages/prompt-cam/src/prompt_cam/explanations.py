"""Questions about images: where a class looks, which heads carry it, how two classes differ, what an edit changes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch

from prompt_cam.class_maps import Classes, Look, compute_maps, find_rows
from prompt_cam.configuration_prompt_cam import Blur
from prompt_cam.figures import HeadRow, draw_heads
from prompt_cam.last_attention import AttentionParts
from prompt_cam.ranking import RANKINGS, HeadRanking, Ranking, build_score_fn, rank_by_scores

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
        images (`tuple[PIL.Image.Image, PIL.Image.Image]`): before and after.
        processor (`BaseImageProcessor`): the one that made the pixel values.

    Example:

    ```python
    >>> import torch
    >>> from PIL import Image
    >>> from transformers import ViTImageProcessorPil
    >>> from prompt_cam import Counterfactual
    >>> images, maps = (Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), "red")), torch.rand(2, 4, 8, 8)
    >>> edit = Counterfactual(
    ...     (3, 5), ("finch", "heron"), (0.9, 0.2), maps, [1, 0, 2, 3], images, ViTImageProcessorPil()
    ... )
    >>> edit.flipped
    True
    >>> [axes.get_title() for axes in edit.draw(top_heads=2).axes[:3]]
    ['finch, 90%', 'head 1', 'head 0']

    ```
    """

    classes: tuple[int, int]
    names: tuple[str, str]
    probabilities: tuple[float, float]
    maps: torch.Tensor
    order: list[int]
    images: tuple[Any, Any]
    processor: Any

    @property
    def flipped(self) -> bool:
        """Whether another class is predicted."""
        return self.classes[0] != self.classes[1]

    def draw(self, top_heads: int = 4) -> Any:
        """Returns a figure of both images with the most important heads of the class predicted before.

        Args:
            top_heads (`int`, defaults to 4): how many heads to show, by their importance before the edit.

        Returns:
            `matplotlib.figure.Figure`

        Raises:
            ImportError: without matplotlib (`pip install "prompt-cam[plots]"`).
            ValueError: if `top_heads` is below 1.
        """
        _check_top_heads(top_heads)
        (before, after), (name, other) = self.probabilities, self.names
        titles = (f"{name}, {before:.0%}", f"edited: {other}\n{name} now {after:.0%}")
        pairs = zip(self.images, titles, self.maps, strict=True)
        return draw_heads([_build_row(*pair, self.order, top_heads) for pair in pairs], self.processor)

    def to_dict(self) -> dict[str, Any]:
        """Returns numbers and names, without maps and images."""
        kept = {name: value for name, value in vars(self).items() if name not in ("maps", "images", "processor")}
        return {**kept, "flipped": self.flipped}


def _check_top_heads(top_heads: int) -> None:
    if top_heads < 1:
        raise ValueError(f"`top_heads` must be at least 1, got {top_heads}.")


def _build_row(image: Any, title: str, maps: torch.Tensor, order: list[int], top_heads: int) -> HeadRow:
    return HeadRow(image, title, maps[order[:top_heads]], [f"head {head}" for head in order[:top_heads]])


def _prepare(model: "PromptCAMForImageClassification", images: Sequence[Any], processor: Any) -> dict[str, Any]:
    """Returns the inputs of the model, after checking what was handed over."""
    for image in images:
        if not hasattr(image, "convert"):
            kind = type(image).__name__
            raise TypeError(f"Expected a PIL image, got {kind}; tensors go to `maps` and `rank_heads`.")
    if len({image.size for image in images}) > 1:
        raise ValueError(f"Expected an edit of the same size, got {[image.size for image in images]}.")
    if not hasattr(processor, "preprocess"):
        raise TypeError(f"Expected the image processor of the backbone, got {type(processor).__name__}.")
    inputs = processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
    return {name: value.to(next(model.head.parameters()).device) for name, value in inputs.items()}


def _get_name(model: "PromptCAMForImageClassification", index: int) -> str:
    return (model.prompt_config.id2label or {}).get(index, f"class {index}")


def _rank(
    model: "PromptCAMForImageClassification", look: Look, classes: torch.Tensor, ranking: Ranking, blur: Blur
) -> HeadRanking:
    score_fn = build_score_fn(model._view(), look, classes, model._score, blur)
    num_heads = AttentionParts(model._view().last_layer).num_heads
    return rank_by_scores(score_fn, classes, look.logits, num_heads, ranking)


def _study(
    model: "PromptCAMForImageClassification", look: Look, index: int
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Returns probabilities and maps of a class in each image, and the order of heads in the first."""
    rows = find_rows(index, look.logits)
    maps = compute_maps(model._view(), look, rows, "patches")[:, 0]
    ranked = _rank(model, look, rows[:, 0], "greedy", model.prompt_config.blur)
    return look.logits.float().softmax(dim=1)[:, index], maps, ranked.order[0].tolist()


def compare_classes(
    model: "PromptCAMForImageClassification", image: Any, classes: Sequence[int] | None, processor: Any, top_heads: int
) -> Any:
    """Returns the figure of [`~PromptCAMForImageClassification.compare_classes`]; one class if `None`."""
    _check_top_heads(top_heads)
    inputs = _prepare(model, [image], processor)
    if classes is not None and len(classes) == 0:
        raise ValueError("`classes` must name at least one class, got none.")
    with torch.no_grad(), model._evaluating():
        look = model._look(**inputs)
        rows = []
        for index in [int(look.logits.argmax())] if classes is None else classes:
            chances, maps, order = _study(model, look, index)
            title = f"{_get_name(model, index)}, {chances[0]:.0%}"
            rows.append(_build_row(image, title, maps[0], order, top_heads))
    return draw_heads(rows, processor)


def counterfactual(
    model: "PromptCAMForImageClassification", image: Any, edited: Any, processor: Any
) -> Counterfactual:
    """Returns the result of [`~PromptCAMForImageClassification.counterfactual`]."""
    inputs = _prepare(model, [image, edited], processor)
    with torch.no_grad(), model._evaluating():
        look = model._look(**inputs)
        before, after = look.logits.argmax(dim=1).tolist()
        chances, maps, order = _study(model, look, before)
    names = (_get_name(model, before), _get_name(model, after))
    return Counterfactual(
        (before, after), names, (chances[0].item(), chances[1].item()), maps, order, (image, edited), processor
    )


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
        with torch.no_grad(), self._evaluating():
            look = self._look(pixel_values, interpolate_pos_encoding, **kwargs)
            maps = compute_maps(self._view(), look, find_rows(classes, look.logits), normalize)
        is_sequence = classes is not None and not isinstance(classes, (Integral, torch.Tensor))
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
        if classes is not None and not isinstance(classes, (Integral, torch.Tensor)):
            raise ValueError(f"`classes` must be one class, or a tensor of one for each image, got {classes!r}.")
        with torch.no_grad(), self._evaluating():
            look = self._look(pixel_values, interpolate_pos_encoding, **kwargs)
            return _rank(self, look, find_rows(classes, look.logits)[:, 0], ranking, blur)

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
        return compare_classes(self, image, None if target is None else [target], processor, top_heads)

    def compare_classes(self: Any, image: Any, classes: Sequence[int], processor: Any, top_heads: int = 4) -> Any:
        """Returns a figure of how several classes see one image, such as the predicted and the true one.

        Args:
            image (`PIL.Image.Image`): the image, of any size.
            classes (sequence of `int`): one row for each.
            processor, top_heads: as in [`explain`].

        Returns:
            `matplotlib.figure.Figure`

        Raises:
            ImportError, TypeError, ValueError: as [`explain`].
        """
        return compare_classes(self, image, classes, processor, top_heads)

    def counterfactual(self: Any, image: Any, edited: Any, processor: Any) -> Counterfactual:
        """Returns what an edit of an image changes: prediction, probability, and where the class looks.

        Args:
            image (`PIL.Image.Image`): before.
            edited (`PIL.Image.Image`): after, of the same size, say with a trait painted over.
            processor (`BaseImageProcessor`): as in [`explain`].

        Returns:
            [`Counterfactual`], which `draw`s a figure when asked

        Raises:
            TypeError: if one of them is no PIL image.
            ValueError: if the sizes differ.
        """
        return counterfactual(self, image, edited, processor)
