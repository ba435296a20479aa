"""A CLIP with the second image projection of BioCLIP 2's experience replay."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.utils.hub import cached_file

from taxaclip.cards import write_model_card
from taxaclip.convert import REPLAY_FILE
from taxaclip.open_clip import REPLAY

ABOUT = f"With the second projection of experience replay in `{REPLAY_FILE}`, by taxaclip."
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


@dataclass
class ReplayCLIPOutput(CLIPOutput):
    """`CLIPOutput` with the embeddings of the replayed batch, `(replay_size, projection_dim)` each."""

    replay_image_embeds: torch.Tensor | None = None
    replay_text_embeds: torch.Tensor | None = None


class ReplayCLIPModel(CLIPModel):
    """A `CLIPModel` whose replayed general images go through a projection of their own, `replay_projection`.

    The projection begins as a copy of `visual_projection` (BioCLIP 2 does the same with `visual.continual_proj`). What
    `save_pretrained` writes is a plain `CLIPModel`, and the projection beside it in `replay_projection.safetensors`.

    Args:
        config (`CLIPConfig`): of the model.

    Example:

    ```python
    >>> import torch
    >>> from transformers import CLIPConfig
    >>> from taxaclip import ReplayCLIPModel
    >>> tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    >>> model = ReplayCLIPModel(CLIPConfig(text_config=tower, vision_config=tower, projection_dim=2))
    >>> torch.equal(model.replay_projection.weight, model.visual_projection.weight)
    True
    >>> type(model.strip_replay()).__name__
    'CLIPModel'

    ```
    """

    _keys_to_ignore_on_save = [REPLAY]  # noqa: RUF012  (as transformers declares it)
    _keys_to_ignore_on_load_missing = [REPLAY]  # noqa: RUF012

    def __init__(self, config: CLIPConfig):
        super().__init__(config)
        self.replay_projection = torch.nn.Linear(
            self.visual_projection.in_features, self.visual_projection.out_features, bias=False
        )
        self.replay_projection.weight.data = self.visual_projection.weight.data.clone()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> "ReplayCLIPModel":
        """Returns the model of a folder or Hub repository of a `CLIPModel`, with its replay projection if it has one.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): folder or id.
            args, kwargs: as of `CLIPModel.from_pretrained`.
        """
        model: ReplayCLIPModel = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        where = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        file = cached_file(
            str(pretrained_model_name_or_path), REPLAY_FILE, _raise_exceptions_for_missing_entries=False, **where
        )
        weight = model.visual_projection.weight.data if file is None else load_file(file)[REPLAY]
        model.replay_projection.weight.data = weight.to(model.visual_projection.weight).clone()
        return model

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:  # type: ignore[override]
        """Writes a plain `CLIPModel`, and beside it the replay projection and, where there is none, a model card.

        Args:
            save_directory (`str` or `Path`): the folder.
            is_main_process (`bool`, defaults to `True`): whether this process writes.
            kwargs: as of `CLIPModel.save_pretrained`, without `push_to_hub`.

        Raises:
            ValueError: for `push_to_hub=True`, which would leave the projection behind.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError(
                "Expected no `push_to_hub=True` here; call model.push_to_hub(repo_id), which sends it all."
            )
        weight = (kwargs.get("state_dict") or {}).get(REPLAY, self.replay_projection.weight)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            self.config.architectures = ["CLIPModel"]
            self.config.save_pretrained(save_directory)
            save_file({REPLAY: weight.detach().cpu().contiguous()}, Path(save_directory) / REPLAY_FILE)
            write_model_card(Path(save_directory), self.config, ABOUT)

    def strip_replay(self) -> CLIPModel:
        """Returns the plain `CLIPModel`, which shares this one's weights."""
        with torch.device("meta"):
            plain = CLIPModel(self.config)
        kept = {name: value for name, value in self.state_dict(keep_vars=True).items() if name != REPLAY}
        plain.load_state_dict(kept, assign=True)
        for name, buffer in self.named_buffers():  # those that are not saved, such as position ids
            module, _, leaf = name.rpartition(".")
            setattr(plain.get_submodule(module), leaf, buffer)
        plain.train(self.training)
        return plain

    def forward(
        self,
        *args: Any,
        replay_pixel_values: torch.Tensor | None = None,
        replay_input_ids: torch.Tensor | None = None,
        replay_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CLIPOutput:
        """Returns what `CLIPModel` does; with a replayed batch, the embeddings of both batches and no logits.

        Args:
            args, kwargs: as of `CLIPModel`.
            replay_pixel_values (`torch.Tensor` of shape `(replay_size, 3, height, width)`, *optional*): general
                images.
            replay_input_ids, replay_attention_mask (`torch.Tensor`, *optional*): and their captions.

        Returns:
            `CLIPOutput`; or, for a replayed batch, `ReplayCLIPOutput` with four embeddings that are not normalised.
        """
        if replay_pixel_values is None:
            plain: CLIPOutput = super().forward(*args, **kwargs)
            return plain
        texts = {"input_ids": kwargs["input_ids"], "attention_mask": kwargs["attention_mask"]}
        replay_texts = {"input_ids": replay_input_ids, "attention_mask": replay_attention_mask}
        replay_pooled = self.vision_model(pixel_values=replay_pixel_values).pooler_output
        return ReplayCLIPOutput(
            image_embeds=self.visual_projection(self.vision_model(pixel_values=kwargs["pixel_values"]).pooler_output),
            text_embeds=self.text_projection(self.text_model(**texts).pooler_output),
            replay_image_embeds=self.replay_projection(replay_pooled),
            replay_text_embeds=self.text_projection(self.text_model(**replay_texts).pooler_output),
        )
