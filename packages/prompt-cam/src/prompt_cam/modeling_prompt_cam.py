"""Prompt-CAM on any vision transformer: class prompts in front of the tokens, one shared vector that scores them."""

import math
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prompt_cam.backbone import Backbone, enable_checkpointing, find_vision_model, forward_arguments
from prompt_cam.class_maps import Look, build_look, compute_maps
from prompt_cam.configuration_prompt_cam import PromptCAMConfig
from prompt_cam.explanations import ExplanationMixin
from prompt_cam.freezing import freeze, release
from prompt_cam.hooks import KEY, Prompts, attach_hooks
from prompt_cam.output import PromptCAMOutput
from prompt_cam.saving import SavingMixin


def get_prompt_cam_model(backbone: nn.Module, config: PromptCAMConfig) -> "PromptCAMForImageClassification":
    """Returns a Prompt-CAM model on a frozen, otherwise unmodified vision transformer.

    Args:
        backbone (`PreTrainedModel`):
            ViT, DeiT, DINO, DINOv2 (with and without registers), DINOv3, the vision part of CLIP, SigLIP or SigLIP 2.
            A classifier or a whole CLIP is taken for the vision transformer in it.
        config (`PromptCAMConfig`): the options.

    Returns:
        [`PromptCAMForImageClassification`]; its `detach` gives the backbone back as it was.

    Raises:
        TypeError: if the backbone is not a model of transformers.
        ValueError: if it cannot take class prompts; the message says why.

    Example:

    ```python
    >>> from transformers import ViTConfig, ViTModel
    >>> from prompt_cam import PromptCAMConfig, get_prompt_cam_model
    >>> vit = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32))
    >>> model = get_prompt_cam_model(vit, PromptCAMConfig(num_classes=5))
    >>> sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 5 * 32 + 32 + 1
    True

    ```
    """
    return PromptCAMForImageClassification(backbone, config)


class PromptCAMForImageClassification(ExplanationMixin, SavingMixin, nn.Module):
    """A frozen vision transformer with class prompts (arXiv 2501.09333, section 3.2).

    The score of class `c` is `w . z_c + b`: `z_c` is its prompt as it leaves the last layer, `w` is the same for all
    classes, so classes differ only in where their prompts look. The state dict has prompts and head only.

    Args:
        backbone (`PreTrainedModel`): see [`get_prompt_cam_model`].
        config (`PromptCAMConfig`): the options.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ViTConfig, ViTModel
    >>> from prompt_cam import PromptCAMConfig, PromptCAMForImageClassification
    >>> vit = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32))
    >>> model = PromptCAMForImageClassification(vit, PromptCAMConfig(num_classes=5)).eval()
    >>> pixel_values = torch.rand(1, 3, 32, 32)
    >>> model(pixel_values).logits.shape, model.maps(pixel_values, classes=3).shape
    (torch.Size([1, 5]), torch.Size([1, 4, 2, 2]))

    ```
    """

    main_input_name = "pixel_values"
    accepts_loss_kwargs = False  # the loss is the mean of its batch: Trainer divides by the steps it accumulates

    def __init__(self, backbone: Any, config: PromptCAMConfig):
        super().__init__()
        self.backbone = find_vision_model(backbone)
        view = self._view()
        if config.base_model_name_or_path is None:
            # The vision part of a whole CLIP has no name of its own.
            name = self.backbone.config.name_or_path or backbone.config.name_or_path
            config = replace(config, base_model_name_or_path=name or None)
        self.prompt_config = config
        counts = config.count_prompts(len(view.layers))
        bound = math.sqrt(6 / (3 * view.patch_size**2 + view.hidden_size))
        self.prompts = nn.ParameterDict(
            {
                f"layer_{index}": nn.Parameter(torch.empty(count, view.hidden_size).uniform_(-bound, bound))
                for index, count in counts.items()
            }
        )
        self.head = nn.Linear(view.hidden_size, 1)
        for index in counts:
            device = next(view.layers[index].parameters()).device
            self.prompts[f"layer_{index}"].data = self.prompts[f"layer_{index}"].data.to(device)
        self.head.to(next(view.final_norm.parameters()).device)

        self._owner = uuid.uuid4().hex
        freeze(self.backbone, self._owner)
        self._handles = attach_hooks(view, self._owner)
        self.register_state_dict_post_hook(_drop_backbone)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_expect_no_backbone)  # type: ignore[no-untyped-call]

    def _view(self) -> Backbone:
        return Backbone(self.backbone)

    def _attached_view(self) -> Backbone:
        if not self._handles:
            raise RuntimeError("This model was detached from its backbone; make a new one.")
        return self._view()

    def activation_checkpointing_enable(
        self, *, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Computes the activations of the backbone's layers again in the backward pass, to save memory.

        Args:
            activation_checkpointing_kwargs (`dict`, *optional*):
                For `torch.utils.checkpoint.checkpoint`. `use_reentrant=True` is refused: no input of the first layer
                needs a gradient, so nothing would be learned.
            **kwargs: more arguments of the backbone's method of this name.

        Raises:
            ValueError: for `use_reentrant=True`.
        """
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if options["use_reentrant"]:
            raise ValueError("Expected use_reentrant=False: reentrant checkpointing gives prompts no gradient.")
        enable_checkpointing(self.backbone, options, kwargs)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """The name of [`activation_checkpointing_enable`] that `Trainer` knows before transformers 5.23."""
        self.activation_checkpointing_enable(activation_checkpointing_kwargs=gradient_checkpointing_kwargs)

    def detach(self) -> Any:
        """Takes the hooks off the backbone and returns it as it came. The model is then over.

        Thawed is what was not frozen before, and each module gets back its mode (training or evaluation) and its
        checkpointing of activations. While another model uses the backbone, that waits for the last one to detach.

        Returns:
            `PreTrainedModel`: the backbone, the vision part if it came in a larger model.
        """
        for handle in self._handles:
            handle.remove()
        self._handles = []
        release(self.backbone, self._owner)
        return self.backbone

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        return_maps: bool = False,
        hidden_states: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> PromptCAMOutput:
        """Returns class scores, and the loss where labels are given.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): images.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): classes.
            interpolate_pos_encoding (`bool`, defaults to `False`): for images of another size than the backbone's.
            return_maps (`bool`, defaults to `False`): whether to return the maps of all classes; see [`maps`].
            hidden_states (`torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`, *optional*):
                What [`features`] returned, in place of `pixel_values`. Variant `"late"` only.
            pixel_attention_mask, spatial_shapes (`torch.Tensor`, *optional*):
                Of SigLIP 2: which patches are no padding, and rows and columns of each image.
            **kwargs: more arguments of the backbone.

        Returns:
            [`PromptCAMOutput`]

        Raises:
            ValueError: if not exactly one of `pixel_values` and `hidden_states` is given, or labels on the CPU are out
                of range; on a GPU, where a look would hold it up, the loss itself fails.
        """
        if (pixel_values is None) == (hidden_states is None):
            raise ValueError("Expected either `pixel_values` or, for the variant 'late', `hidden_states`.")
        if hidden_states is not None:
            if return_maps:
                raise ValueError("`return_maps` needs `pixel_values`: features do not say how patches lie.")
            return self._output(self._score(self._run_late(hidden_states)), labels)
        named = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        kwargs |= {name: value for name, value in named.items() if value is not None}
        prompts = self._gather_prompts(keep_input=return_maps)
        logits = self._score(self._run(pixel_values, interpolate_pos_encoding, prompts, **kwargs))
        output = self._output(logits, labels)
        if return_maps:
            look = build_look(self._view(), logits, prompts.seen, pixel_values, spatial_shapes)
            every = torch.arange(self.prompt_config.num_classes, device=logits.device).expand(len(logits), -1)
            output.class_maps = compute_maps(self._view(), look, every, "patches")
        return output

    def features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> torch.Tensor:
        """Returns the tokens that enter the last layer, which the variant `"late"` never changes: compute them once.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): images.
            interpolate_pos_encoding (`bool`, defaults to `False`): as in `forward`.
            **kwargs: more arguments of the backbone.

        Returns:
            `torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`, without prompts and without a gradient.

        Raises:
            ValueError: for another variant, or a backbone whose layers need more than tokens (DINOv3, SigLIP 2).
        """
        if self.prompt_config.variant != "late":
            raise ValueError(f"Only the variant 'late' has features to keep, got {self.prompt_config.variant!r}.")
        with torch.no_grad(), self._evaluating():
            prompts = self._gather_prompts(keep_input=True)
            self._run(pixel_values, interpolate_pos_encoding, prompts, **kwargs)
        given = prompts.seen
        if given.position_embeddings is not None or given.attention_mask is not None:
            raise ValueError(
                f"The layers of {self.backbone.config.model_type!r} need more than tokens (rotary positions or "
                "masks): train from `pixel_values`."
            )
        return given.hidden_states[:, self.prompt_config.num_classes :]

    def predict(self, pixel_values: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Returns the probability of each class, with dropout off whatever mode the model is in, and no gradient.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): images.
            **kwargs: as in `forward`.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_classes)`
        """
        with torch.no_grad(), self._evaluating():
            tokens = self._run(
                pixel_values, kwargs.pop("interpolate_pos_encoding", False), self._gather_prompts(), **kwargs
            )
            return self._score(tokens).float().softmax(dim=1)

    def _gather_prompts(self, *, keep_input: bool = False) -> Prompts:
        """Returns what one call hands to the layers."""
        layers = {int(name.removeprefix("layer_")): prompt for name, prompt in self.prompts.items()}
        dropout = self.prompt_config.prompt_dropout if self.training else 0.0
        return Prompts(self._owner, layers, dropout, keep_input)

    def _run(self, pixel_values: Any, interpolate_pos_encoding: bool, prompts: Prompts, **kwargs: Any) -> torch.Tensor:
        """Returns the class prompts after the last layer and the final norm."""
        view = self._attached_view()
        if interpolate_pos_encoding and "interpolate_pos_encoding" in forward_arguments(self.backbone):
            kwargs["interpolate_pos_encoding"] = True
        output = self.backbone(pixel_values, **{KEY: prompts}, **kwargs)
        return view.read_class_tokens(output.last_hidden_state, self.prompt_config.num_classes)

    def _run_late(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.prompt_config.variant != "late":
            raise ValueError(f"`hidden_states` are for the variant 'late', got {self.prompt_config.variant!r}.")
        view = self._attached_view()
        output = view.last_layer(hidden_states, None, **{KEY: self._gather_prompts()})
        tokens: torch.Tensor = view.final_norm(output[:, : self.prompt_config.num_classes])
        return tokens

    def _look(self, pixel_values: Any, interpolate_pos_encoding: bool = False, **kwargs: Any) -> Look:
        """Returns what maps and rankings are made of, from one forward pass."""
        prompts = self._gather_prompts(keep_input=True)
        tokens = self._run(pixel_values, interpolate_pos_encoding, prompts, **kwargs)
        shapes = kwargs.get("spatial_shapes")
        return build_look(self._view(), self._score(tokens), prompts.seen, pixel_values, shapes)

    def _score(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns `w . z + b` for each token."""
        scores: torch.Tensor = self.head(tokens.to(self.head.weight))[..., 0]
        return scores

    def _output(self, logits: torch.Tensor, labels: torch.Tensor | None) -> PromptCAMOutput:
        loss = None
        if labels is not None:
            if labels.device.type == "cpu" and labels.numel():
                low, high = labels.min().item(), labels.max().item()
                if not 0 <= low <= high < logits.shape[1]:
                    raise ValueError(f"`labels` must be from 0 to {logits.shape[1] - 1}, got {low} to {high}.")
            loss = nn.functional.cross_entropy(logits.float(), labels.to(logits.device))
        return PromptCAMOutput(loss=loss, logits=logits)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Switches dropout off and afterwards every module back to the mode that it was in.

        In training mode one thread at a time: modes belong to the modules that threads share.
        """
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def _drop_backbone(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for key in [key for key in state_dict if key.startswith(f"{prefix}backbone.")]:
        del state_dict[key]


def _expect_no_backbone(module: nn.Module, incompatible_keys: Any) -> None:
    kept = [key for key in incompatible_keys.missing_keys if "backbone." not in key]
    incompatible_keys.missing_keys[:] = kept
