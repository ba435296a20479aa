"""FinerCAM: a model, its target layer, and one call for the maps of a batch."""

import logging
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, get_args

import torch
from torch import Tensor, nn

from finer_cam import layers
from finer_cam.classes import ClassNames, resolve_references, resolve_target
from finer_cam.evidence import MapOptions
from finer_cam.functional import METHODS, Normalization, normalize_maps
from finer_cam.layout import read_image_shape
from finer_cam.observing import Call, Choice, Observer
from finer_cam.output import FinerCAMOutput, build_output, check_gamma
from finer_cam.references import Weighting, gather_classes, reference_weights
from finer_cam.tail import explained_errors, undisturbed, without_inference_tensors

logger = logging.getLogger(__name__)


class FinerCAM:
    """Maps of what tells a class from its look-alikes, for any image classifier.

    Finer-CAM (arXiv 2501.11309) explains `y_c - gamma * mean_t y_dt`, the score of a class less that of similar ones,
    where other maps explain `y_c`. One forward, which records nothing before the target layer, and a backward through
    what lies behind it, for the whole batch; no backward at all where the head is mean pooling and a linear layer. The
    model is left as it was: weights, `.grad`, `requires_grad`, training mode, hooks, random state.

    Args:
        model (`torch.nn.Module`):
            Image classifier of transformers, or any module that gives logits; frozen, compiled (it then runs eagerly)
            or on several devices.
        target_layer (`str` or `torch.nn.Module`, defaults to `"auto"`):
            Module or dotted name. `"auto"` takes the first norm of the last block of a transformer and the last stage
            of ResNet, ConvNeXt and Swin.
        method (`str`, defaults to `"gradcam"`):
            Base map: cam (heads of mean pooling and a linear layer only), gradcam, hirescam, layercam, xgradcam,
            gradcam++ or scorecam.
        gamma (`float` or `list[float]`, defaults to 0.6, the paper's value):
            Strength of the comparison; 0 gives the base map. Several give an axis G.
        references (defaults to `"logits"`):
            `"logits"`: the classes of the nearest logits; `"weights"`: of the most similar classifier weights; class
            ids or names: one, T for all images, or lists for each image; a float matrix of shape
            `(num_classes, num_classes)`, such as a confusion matrix, whose row of the target says how similar others
            are; or a function of `(logits, target)` that returns ids.
        num_references (`int`, defaults to 3, the paper's value): T, where the classes are not given.
        weighting (defaults to `"uniform"`):
            `"uniform"` (published), `"softmax"` (over the references' logits, without gradient), a tensor of shape
            `(T,)` or `(B, T)`, or `"reference-code"`: that of the released code, which fades for confident models.
            Of a tensor, the weight of a reference that is the target itself goes to the others in proportion.
        normalize (`"minmax"`, `"max"` or `None`, defaults to `"minmax"`): see [`normalize_maps`].
        processor (*optional*): image processor, so that [`FinerCAMOutput.overlay`] can undo its resize and crop.
        clip_outliers (`float`, *optional*):
            Quantile at which maps are cut on the grid, against single tokens of very large norm.
        channel_batch_size (`int`, defaults to 64): masked images in one forward, for Score-CAM.
        top_channels (`int`, *optional*): Score-CAM with the channels of largest variance only.

    Raises:
        ValueError: if an option is none of the choices, or there is no such layer.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig, ResNetForImageClassification
    >>> from finer_cam import FinerCAM
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
    >>> with FinerCAM(ResNetForImageClassification(config)) as cam:
    ...     out = cam(pixel_values=torch.randn(2, 3, 48, 64), target=[0, 3], references=[1, 2])
    >>> out.maps.shape, out.grid.tolist()
    (torch.Size([2, 48, 64]), [[6, 8], [6, 8]])

    ```
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        target_layer: str | nn.Module = "auto",
        method: str = "gradcam",
        gamma: float | Sequence[float] = 0.6,
        references: Any = "logits",
        num_references: int = 3,
        weighting: Weighting | Tensor | Sequence[float] = "uniform",
        normalize: Normalization = "minmax",
        processor: Any = None,
        clip_outliers: float | None = None,
        channel_batch_size: int = 64,
        top_channels: int | None = None,
    ):
        _check_choice("method", method, METHODS)
        if isinstance(weighting, str):
            _check_choice("weighting", weighting, get_args(Weighting))
        check_gamma(gamma)
        normalize_maps(torch.zeros(1, 1), normalize)
        for name, value, lowest in (
            ("num_references", num_references, 0),
            ("channel_batch_size", channel_batch_size, 1),
            ("top_channels", 1 if top_channels is None else top_channels, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise ValueError(f"`{name}` must be a whole number from {lowest}, got {value!r}.")
        if clip_outliers is not None and not 0 < clip_outliers <= 1:
            raise ValueError(f"`clip_outliers` must be a quantile in (0, 1], got {clip_outliers!r}.")
        self.model = layers.unwrap(model)
        self.layer_name, self.layer = layers.get_target_layer(self.model, target_layer)
        self.method, self.gamma, self.processor = method, gamma, processor
        self.references, self.num_references, self.weighting = references, num_references, weighting
        self.channel_batch_size, self.top_channels = channel_batch_size, top_channels
        self._patches = layers.find_patches(self.model)
        self._class_ids = {name: index for index, name in layers.find_class_names(self.model).items()}
        options = MapOptions(method=method, normalize=normalize, clip_outliers=clip_outliers)
        self._observer = Observer(self.model, self.layer_name, self.layer, options)
        self._has_warned = False

    def __enter__(self) -> "FinerCAM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._observer.forget_head()

    def __call__(
        self,
        pixel_values: Tensor,
        *,
        target: Any = None,
        references: Any = None,
        gamma: float | Sequence[float] | None = None,
        **kwargs: Any,
    ) -> FinerCAMOutput:
        """Returns the maps of a batch.

        Args:
            pixel_values (`torch.Tensor`): `(B, C, H, W)`, or patches with `spatial_shapes`, as the processor says.
            target (*optional*):
                Class to explain, as id or name: one for all images, one for each, or nested `(B, Q)`. The predicted
                class if not given.
            references, gamma (*optional*): for this call, instead of those of the object.
            **kwargs: for the model, such as `interpolate_pos_encoding=True`.

        Returns:
            [`FinerCAMOutput`]

        Raises:
            ValueError: if classes, shapes or the target layer do not fit, or no gradient reaches the target layer.
        """
        gamma = self.gamma if gamma is None else gamma
        has_strength = any(check_gamma(gamma))
        with undisturbed(self.model), explained_errors(self.model):
            pixel_values = without_inference_tensors(pixel_values)
            kwargs = {name: without_inference_tensors(value) for name, value in kwargs.items()}
            shape = read_image_shape(self._patches, pixel_values, kwargs)
            call = Call(pixel_values=pixel_values, kwargs=kwargs, shape=shape)
            choose = partial(self._choose, target=target, references=references, has_strength=has_strength)
            if self.method == "scorecam":
                evidence, choice, path = self._observer.observe_scores(
                    call, choose, batch_size=self.channel_batch_size, top_channels=self.top_channels
                )
            else:
                evidence, choice, path = self._observer.observe_gradients(call, choose)
                if self.method == "cam" and path == "autograd":
                    self._check_head()
            return build_output(
                evidence,
                gamma,
                choice.has_several_targets,
                logits=choice.logits,
                target=choice.target,
                references=choice.references,
                weights=choice.weights,
                path=path,
                processor=self.processor,
            )

    def _check_head(self) -> None:
        if self._observer.head is None:
            raise ValueError(
                "`method='cam'` needs mean pooling and a linear layer right behind the target layer, but "
                f"{self.layer_name!r} of {type(self.model).__name__} has something else there; use 'gradcam', or the "
                "layer that is pooled."
            )

    def _choose(self, logits: Tensor, *, target: Any, references: Any, has_strength: bool) -> Choice:
        """Returns what to explain, from the logits `(B, C)`: target `(B, Q)`, references and weights `(B, Q, T)`."""
        references = self.references if references is None else references
        names = ClassNames(logits.shape[1], self._class_ids)
        targets, has_several_targets = resolve_target(target, logits, names)
        if self.num_references == 0 and (isinstance(references, str) or _is_matrix(references)):
            if has_strength and not self._has_warned:
                self._has_warned = True
                logger.warning("There is no class to compare with: the maps are base maps.")
            chosen = targets.new_empty(*targets.shape, 0)
        else:
            chosen = resolve_references(
                references,
                logits,
                targets,
                self.num_references,
                names,
                lambda: layers.classifier_weight(self.model, logits.shape[1]),
            )
        return Choice(
            logits=logits,
            target=targets,
            references=chosen,
            weights=self._weigh(logits, chosen),
            are_weights_fixed=not isinstance(self.weighting, str) or self.weighting != "reference-code",
            has_several_targets=has_several_targets,
        )

    def _weigh(self, logits: Tensor, references: Tensor) -> Tensor:
        """Returns the weights `(B, Q, T)`; under `"reference-code"` those that a gradient would also flow through."""
        valid = references >= 0
        if isinstance(self.weighting, str):
            if self.weighting != "reference-code":
                return reference_weights(logits, references, self.weighting)
            probabilities = gather_classes(logits.softmax(dim=1), references) * valid
            return probabilities / (probabilities.sum(dim=2, keepdim=True) + 1e-9)
        weights = torch.as_tensor(self.weighting, dtype=torch.float32, device=logits.device)
        num_references = references.shape[2]
        if weights.shape not in ((num_references,), (len(logits), num_references)):
            raise ValueError(
                f"`weighting` must have the shape ({num_references},) or ({len(logits)}, {num_references}), one "
                f"weight for each reference, got {tuple(weights.shape)}."
            )
        given = (weights if weights.ndim == 1 else weights[:, None]).expand(references.shape)
        left = given * valid
        share = left.sum(dim=2, keepdim=True) / given.sum(dim=2, keepdim=True)
        return left / share.where(share > 0, 1.0)


def _is_matrix(references: Any) -> bool:
    return isinstance(references, Tensor) and references.is_floating_point()


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
