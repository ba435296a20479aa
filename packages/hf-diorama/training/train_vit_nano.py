"""Trains `vit-nano`, a ViT that tells the 96 species of `creatures` apart, on one CPU thread.

    OMP_NUM_THREADS=1 python packages/hf-diorama/training/train_vit_nano.py

Run the same command again to go on from the last checkpoint. `evaluate_species.py vit-nano` measures what comes out.
"""

import torch
from species_training import SIZE, TraitHead, label_names, species_loss, train
from transformers import ViTConfig, ViTForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput


class ViTWithTraits(ViTForImageClassification):
    """A classifier with a second head that names the look of each trait part."""

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        self.traits = TraitHead(config.hidden_size)
        self.post_init()

    def forward(self, pixel_values, labels=None, **kwargs):
        output = super().forward(pixel_values, output_hidden_states=True, **kwargs)
        if labels is None:
            return output
        pooled = self.vit.layernorm(output.hidden_states[-1][:, 0])
        return ImageClassifierOutput(loss=species_loss(self, output.logits, pooled, labels), logits=output.logits)


def build_model() -> ViTWithTraits:
    """Returns the untrained model, with sine-cosine positions, which small models learn faster from."""
    config = ViTConfig(
        image_size=SIZE,
        patch_size=8,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=256,
        **label_names(),
    )
    model = ViTWithTraits(config)
    side, quarter = SIZE // config.patch_size, config.hidden_size // 4
    waves = torch.outer(torch.arange(side).float(), 10.0 ** -torch.linspace(0, 1.5, quarter))  # (side, quarter)
    axis = torch.cat([waves.sin(), waves.cos()], dim=1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    grid = torch.cat([rows, columns], dim=2).flatten(0, 1)  # (num_patches, hidden_size)
    with torch.no_grad():
        model.vit.embeddings.position_embeddings[0, 1:] = 0.3 * grid
    return model


if __name__ == "__main__":
    train(
        "vit-nano",
        build_model,
        ViTForImageClassification,
        learning_rate=1.5e-3,
        prepare=lambda model: model.set_attn_implementation("eager"),
    )
