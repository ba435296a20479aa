"""Trains `convnet-nano`, a ResNet that tells the 96 species of `creatures` apart, on one CPU thread.

    OMP_NUM_THREADS=1 python packages/hf-diorama/training/train_convnet_nano.py

Run the same command again to go on from the last checkpoint. `evaluate_species.py convnet-nano` measures the result.
"""

import torch
from species_training import TraitHead, label_names, species_loss, train
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput


class ResNetWithTraits(ResNetForImageClassification):
    """A classifier with a second head that names the look of each trait part."""

    def __init__(self, config: ResNetConfig):
        super().__init__(config)
        self.traits = TraitHead(config.hidden_sizes[-1])
        self.post_init()

    def forward(self, pixel_values, labels=None, **kwargs):
        pooled = self.resnet(pixel_values).pooler_output
        logits = self.classifier(pooled)
        loss = None if labels is None else species_loss(self, logits, pooled.flatten(1), labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def build_model() -> ResNetWithTraits:
    """Returns the untrained model: two stages, so that its last map has 8 x 8 places, as many as `vit-nano` has."""
    config = ResNetConfig(
        embedding_size=48, hidden_sizes=[64, 128], depths=[2, 3], layer_type="basic", **label_names()
    )
    return ResNetWithTraits(config)


if __name__ == "__main__":
    train(
        "convnet-nano",
        build_model,
        ResNetForImageClassification,
        learning_rate=2e-3,
        prepare=lambda model: model.to(memory_format=torch.channels_last),  # convolutions in bf16 are faster so
    )
