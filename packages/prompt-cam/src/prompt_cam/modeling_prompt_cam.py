"""Prompt-CAM on any vision transformer: class prompts in front of the tokens, one shared vector that scores them."""

import math
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.utils.generic import ModelOutput

from prompt_cam import backbone as observe
from prompt_cam.adapter import (
    check_fit,
    merge_options,
    read_adapter,
    read_released_checkpoint,
    upload_adapter,
    write_adapter,
)
from prompt_cam.configuration_prompt_cam import Blur, PromptCAMConfig
from prompt_cam.explanations import Counterfactual, compare_classes, counterfactual
from prompt_cam.functional import patch_attention
from prompt_cam.ranking import RANKINGS, HeadRanking, Ranking, mix_heads, rank

TAIL_TOKENS = 8192
"""Tokens of a head ranking that go through the last layer at once."""

Classes = int | Sequence[int] | torch.Tensor | None


@dataclass
class PromptCAMOutput(ModelOutput):
    """What a Prompt-CAM model returns.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): cross-entropy, where `labels` are given.
        logits (`torch.FloatTensor` of shape `(batch_size, num_classes)`): class scores.
        class_maps (`torch.FloatTensor` of shape `(batch_size, num_classes, num_heads, rows, columns)`, *optional*):
            attention of each class prompt over the patches, with `return_maps=True`.

    Example:

    ```python
    >>> import torch
    >>> from prompt_cam import PromptCAMOutput
    >>> PromptCAMOutput(logits=torch.zeros(1, 3)).logits.shape
    torch.Size([1, 3])

    ```
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    class_maps: torch.Tensor | None = None


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


class PromptCAMForImageClassification(nn.Module):
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

    def __init__(self, backbone: nn.Module, config: PromptCAMConfig):
        super().__init__()
        self.backbone: Any = observe.find_vision_model(backbone)
        view = self._view()
        if config.base_model_name_or_path is None:
            config = replace(config, base_model_name_or_path=self.backbone.config.name_or_path or None)
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

        self._were_trained = [p for p in self.backbone.parameters() if p.requires_grad]
        self.backbone.requires_grad_(False)
        self._owner = uuid.uuid4().hex
        self._handles = observe.attach_hooks(view, self._owner)
        self.register_state_dict_post_hook(_drop_backbone)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_expect_no_backbone)  # type: ignore[no-untyped-call]

    def _view(self) -> observe.Backbone:
        return observe.Backbone(self.backbone)

    def _attached_view(self) -> observe.Backbone:
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
        observe.enable_checkpointing(self.backbone, options, kwargs)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """The name of [`activation_checkpointing_enable`] that `Trainer` knows before transformers 5.23."""
        self.activation_checkpointing_enable(activation_checkpointing_kwargs=gradient_checkpointing_kwargs)

    def detach(self) -> Any:
        """Takes the hooks off the backbone, thaws what was not frozen before, and returns it. The model is then over.

        Returns:
            `PreTrainedModel`: the backbone as it came.
        """
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for parameter in self._were_trained:
            parameter.requires_grad_(True)
        return self.backbone

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes prompts and head (safetensors) and the options (JSON): megabytes where the backbone has hundreds.

        Args:
            save_directory (`str`): the folder, made if it is not there.
        """
        write_adapter(Path(save_directory), self.prompt_config, self.state_dict())

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | bool | None = None) -> str:
        """Uploads what [`save_pretrained`] writes to a repository on the Hub, made if it is not there.

        Args:
            repo_id (`str`): such as `name/adapter`.
            private (`bool`, *optional*): whether a new repository is private.
            token (`str`, *optional*): of your account; the stored one if not given.

        Returns:
            `str`: address of the commit
        """
        return upload_adapter(repo_id, self.prompt_config, self.state_dict(), private=private, token=token)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        backbone: nn.Module | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | None = None,
        **backbone_kwargs: Any,
    ) -> "PromptCAMForImageClassification":
        """Returns the model of an adapter folder or Hub repository, in evaluation mode.

        Args:
            name_or_path (`str`): folder that [`save_pretrained`] wrote, or Hub id.
            backbone (`PreTrainedModel`, *optional*): the backbone; loaded by the name in the options if not given.
            revision, token, cache_dir: for the adapter on the Hub.
            **backbone_kwargs: for `AutoModel.from_pretrained`, such as `dtype` or `device_map`.

        Returns:
            [`PromptCAMForImageClassification`]

        Raises:
            FileNotFoundError: if there is no such folder, or a file is missing in it.
            ValueError: if a file is damaged, or the adapter does not fit the backbone.
        """
        config, tensors = read_adapter(name_or_path, revision=revision, token=token, cache_dir=cache_dir)
        return cls._build(config, tensors, backbone, backbone_kwargs)

    @classmethod
    def from_released(
        cls, path: str | os.PathLike[str], backbone: nn.Module, **options: Any
    ) -> "PromptCAMForImageClassification":
        """Returns the model of a checkpoint (`model.pt`) that the authors' code wrote, in evaluation mode.

        Args:
            path (`str`): the file; read without executing anything in it.
            backbone (`PreTrainedModel`): the vision transformer that it was trained on, in transformers' format.
            **options: of [`PromptCAMConfig`], such as `id2label`.

        Returns:
            [`PromptCAMForImageClassification`]; `save_pretrained` writes it as an adapter folder.

        Raises:
            ValueError: if the file is no such checkpoint, or does not fit the backbone.
        """
        config, tensors = read_released_checkpoint(path)
        return cls._build(merge_options(config, options), tensors, backbone, {})

    @classmethod
    def _build(
        cls,
        config: PromptCAMConfig,
        tensors: dict[str, torch.Tensor],
        backbone: nn.Module | None,
        backbone_kwargs: dict[str, Any],
    ) -> "PromptCAMForImageClassification":
        if backbone is None:
            if config.base_model_name_or_path is None:
                raise ValueError("The adapter does not name its backbone: hand it over as `backbone`.")
            backbone = AutoModel.from_pretrained(
                config.base_model_name_or_path, revision=config.revision, **backbone_kwargs
            )
        elif backbone_kwargs:
            raise TypeError(f"{sorted(backbone_kwargs)} are for loading a backbone, but one was given.")
        check_fit(tensors, config, observe.Backbone(observe.find_vision_model(backbone)))
        model = cls(backbone, config)
        model.load_state_dict(tensors)
        return model.eval()

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        return_maps: bool = False,
        hidden_states: torch.Tensor | None = None,
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
            **kwargs: more arguments of the backbone, such as `spatial_shapes`.

        Returns:
            [`PromptCAMOutput`]

        Raises:
            ValueError: if not exactly one of `pixel_values` and `hidden_states` is given, or labels are out of range.
        """
        if (pixel_values is None) == (hidden_states is None):
            raise ValueError("Expected either `pixel_values` or, for the variant 'late', `hidden_states`.")
        if hidden_states is not None:
            if return_maps:
                raise ValueError("`return_maps` needs `pixel_values`: features do not say how patches lie.")
            return self._output(self._run_late(hidden_states), labels)
        tokens, seen = self._run(pixel_values, interpolate_pos_encoding, keep_input=return_maps, **kwargs)
        output = self._output(tokens, labels)
        if seen is not None:
            every = torch.arange(self.prompt_config.num_classes, device=tokens.device).expand(len(tokens), -1)
            output.class_maps = self._maps_from(seen, every, pixel_values, "patches", kwargs)
        return output

    def features(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Returns the tokens that enter the last layer, which the variant `"late"` never changes: compute them once.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): images.
            interpolate_pos_encoding (`bool`, defaults to `False`): as in `forward`.

        Returns:
            `torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`, without prompts and without a gradient.

        Raises:
            ValueError: for another variant, or a backbone whose layers need more than tokens (DINOv3, SigLIP 2).
        """
        if self.prompt_config.variant != "late":
            raise ValueError(f"Only the variant 'late' has features to keep, got {self.prompt_config.variant!r}.")
        with torch.no_grad(), self._evaluating():
            _, seen = self._run(pixel_values, interpolate_pos_encoding, keep_input=True)
        if seen is None or seen.position_embeddings is not None or seen.attention_mask is not None:
            raise ValueError(
                f"The layers of {self.backbone.config.model_type!r} need more than tokens (rotary positions or "
                "masks): train from `pixel_values`."
            )
        return seen.hidden_states[:, self.prompt_config.num_classes :]

    def maps(
        self,
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
            tokens, seen = self._run(pixel_values, interpolate_pos_encoding, keep_input=True, **kwargs)
            rows = self._find_rows(classes, tokens)
            assert seen is not None  # keep_input asked for it
            maps = self._maps_from(seen, rows, pixel_values, normalize, kwargs)
        is_sequence = classes is not None and not isinstance(classes, (int, torch.Tensor))
        return maps if is_sequence else maps[:, 0]

    def rank_heads(
        self,
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
            tokens, seen = self._run(pixel_values, interpolate_pos_encoding, keep_input=True, **kwargs)
            assert seen is not None  # keep_input asked for it
            rows = self._find_rows(classes, tokens)
            patches, _ = self._find_patches(seen, pixel_values, kwargs)
            parts = observe.AttentionParts(self._view().last_layer)
            attention = parts.attend(seen, rows)[:, :, 0]
            sharp, blurred = mix_heads(attention, parts.values(seen), patches, blur)
            prompt = seen.hidden_states[torch.arange(len(rows), device=rows.device), rows[:, 0]]

            def score_fn(is_blurred: torch.Tensor) -> torch.Tensor:
                choose = is_blurred[..., None].to(sharp.device)  # (B, K, R, 1)
                heads = torch.where(choose, blurred[:, None], sharp[:, None]).flatten(0, 1)
                repeated = prompt[:, None].expand(-1, choose.shape[1], -1).flatten(0, 1)
                after = [
                    self._view().final_norm(parts.run_tail(*chunk, seen))
                    for chunk in zip(repeated.split(TAIL_TOKENS), heads.split(TAIL_TOKENS), strict=True)
                ]
                return self._score(torch.cat(after)).view(choose.shape[:2]).float()

            return rank(score_fn, rows[:, 0], self._score(tokens), parts.num_heads, ranking)

    def explain(self, image: Any, processor: Any, target: int | None = None, top_heads: int = 4) -> Any:
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

    def compare_classes(self, image: Any, processor: Any, classes: Sequence[int], top_heads: int = 4) -> Any:
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

    def counterfactual(self, image: Any, edited: Any, processor: Any, top_heads: int = 4) -> Counterfactual:
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

    def predict(self, pixel_values: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Returns the probability of each class, with dropout off whatever mode the model is in, and no gradient.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): images.
            **kwargs: as in `forward`.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_classes)`
        """
        with torch.no_grad(), self._evaluating():
            tokens, _ = self._run(pixel_values, kwargs.pop("interpolate_pos_encoding", False), **kwargs)
            return self._score(tokens).float().softmax(dim=1)

    def _run(
        self, pixel_values: Any, interpolate_pos_encoding: bool, *, keep_input: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, observe.LayerInput | None]:
        """Returns the class prompts after the last layer and the final norm, and the input of the last layer."""
        view = self._attached_view()
        layers = {int(name.removeprefix("layer_")): prompt for name, prompt in self.prompts.items()}
        dropout = self.prompt_config.prompt_dropout if self.training else 0.0
        prompts = observe.Prompts(self._owner, layers, dropout, keep_input)
        if interpolate_pos_encoding and "interpolate_pos_encoding" in observe.forward_arguments(self.backbone):
            kwargs["interpolate_pos_encoding"] = True
        output = self.backbone(pixel_values, **{observe.KEY: prompts}, **kwargs)
        return view.read_class_tokens(output.last_hidden_state, self.prompt_config.num_classes), prompts.seen

    def _run_late(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.prompt_config.variant != "late":
            raise ValueError(f"`hidden_states` are for the variant 'late', got {self.prompt_config.variant!r}.")
        view = self._attached_view()
        index = len(view.layers) - 1
        layers = {index: self.prompts[f"layer_{index}"]}
        dropout = self.prompt_config.prompt_dropout if self.training else 0.0
        prompts = observe.Prompts(self._owner, layers, dropout)
        output = view.last_layer(hidden_states, None, **{observe.KEY: prompts})
        tokens: torch.Tensor = view.final_norm(output[:, : self.prompt_config.num_classes])
        return tokens

    def _score(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns `w . z + b` for each token."""
        scores: torch.Tensor = self.head(tokens.to(self.head.weight))[..., 0]
        return scores

    def _output(self, tokens: torch.Tensor, labels: torch.Tensor | None) -> PromptCAMOutput:
        logits, loss = self._score(tokens), None
        if labels is not None:
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.prompt_config.num_classes:
                raise ValueError(
                    f"`labels` must be from 0 to {self.prompt_config.num_classes - 1}, got {int(labels.min())} to "
                    f"{int(labels.max())}."
                )
            loss = nn.functional.cross_entropy(logits.float(), labels.to(logits.device))
        return PromptCAMOutput(loss=loss, logits=logits)

    def _find_rows(self, classes: Classes, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the class prompts that are asked for, `(batch_size, num_rows)`."""
        if classes is None:
            return self._score(tokens).argmax(dim=1, keepdim=True)
        rows = torch.as_tensor(classes, device=tokens.device)
        if rows.numel() == 0 or rows.is_floating_point() or rows.ndim > 1:
            raise ValueError(f"`classes` must be whole numbers in at most one dimension, got {classes}.")
        if not 0 <= int(rows.min()) <= int(rows.max()) < self.prompt_config.num_classes:
            raise ValueError(f"`classes` must be from 0 to {self.prompt_config.num_classes - 1}, got {rows.tolist()}.")
        if isinstance(classes, torch.Tensor) and rows.ndim == 1:
            if len(rows) != len(tokens):
                raise ValueError(f"Expected one class for each of {len(tokens)} images, got {len(rows)}.")
            return rows[:, None]
        return rows.view(1, -1).expand(len(tokens), -1)

    def _find_patches(
        self, seen: observe.LayerInput, pixel_values: torch.Tensor, kwargs: dict[str, Any]
    ) -> tuple[slice, tuple[int, int]]:
        """Returns which tokens of the last layer are patches, and their grid."""
        num_tokens = seen.hidden_states.shape[1]
        shapes = kwargs.get("spatial_shapes")
        grid = self._view().find_grid(pixel_values, num_tokens - self.prompt_config.num_classes, shapes)
        count = grid[0] * grid[1]
        start = self.prompt_config.num_classes if shapes is not None else num_tokens - count
        return slice(start, start + count), grid

    def _maps_from(
        self,
        seen: observe.LayerInput,
        rows: torch.Tensor,
        pixel_values: Any,
        normalize: str | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        patches, grid = self._find_patches(seen, pixel_values, kwargs)
        attention = observe.AttentionParts(self._view().last_layer).attend(seen, rows)  # (B, heads, rows, tokens)
        maps: torch.Tensor = patch_attention(attention, patches, normalize).transpose(1, 2).unflatten(-1, grid)
        return maps

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Switches dropout off and afterwards every module back to the mode that it was in."""
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
