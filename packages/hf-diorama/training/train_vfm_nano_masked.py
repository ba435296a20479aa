"""Trains `vfm-nano-masked` to fill in hidden patches of an image (masked autoencoder); it sees no label.

    OMP_NUM_THREADS=1 python packages/hf-diorama/training/train_vfm_nano_masked.py

Run the same command again to go on from the last checkpoint.
"""

import torch
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from vfm_nano import LAYOUT, build_tower, load_rows, move, parse_args, save_tower, train

NAME = "vfm-nano-masked"


class Masked(nn.Module):
    """The tower as the encoder of transformers' `ViTMAEForPreTraining` (arXiv 2111.06377).

    Its small decoder, which paints the hidden 60 percent of the patches, is dropped afterwards.
    """

    def __init__(self) -> None:
        super().__init__()
        tower = build_tower()
        config = ViTMAEConfig(
            **LAYOUT,
            mask_ratio=0.6,
            norm_pix_loss=True,
            decoder_hidden_size=96,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=4,
            decoder_intermediate_size=192,
        )
        self.autoencoder = ViTMAEForPreTraining(config)
        self.autoencoder.set_attn_implementation("eager")
        self.autoencoder.vit.load_state_dict(tower.state_dict())

    def forward(self, pixel_values):
        return {"loss": self.autoencoder(pixel_values).loss}


def main() -> None:
    args = parse_args(NAME, steps=1_500)
    torch.set_num_threads(1)
    images = torch.cat([load_rows(world, ["key"])[0] for world in ("creatures", "scenes")])

    def collate(indices):
        return {"pixel_values": move(images[torch.tensor(indices)], smallest=0.7, jitter=0.05)}

    model = Masked()
    train(args, model, len(images), collate, batch_size=128, lr=1.5e-3)
    save_tower(model.autoencoder.vit, args.out)


if __name__ == "__main__":
    main()
