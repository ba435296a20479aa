"""Trains `clip-nano`, a CLIP that knows the tree of life of `creatures` by its captions, on one CPU thread.

    OMP_NUM_THREADS=1 python packages/hf-diorama/training/train_clip_nano.py

Run the same command again to go on from the last checkpoint. `evaluate_clip_nano.py` measures the result.
"""

import json
import math
from pathlib import Path

import torch
from species_training import train
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_diorama.worlds.creatures.taxonomy import build_tree
from taxaclip import TaxonPath, contrastive_loss
from taxaclip.taxonomy import TEXT_TYPES

CONTEXT = 48


def taxa() -> list[TaxonPath]:
    """Returns the 96 species in the order of their labels."""
    return [TaxonPath(species.ranks, species.common_name) for species in build_tree()]


def build_tokenizer() -> CLIPTokenizer:
    """Returns CLIP's byte-level tokenizer with 512 merges learned from the captions."""
    captions = [taxon.caption(text_type) for taxon in taxa() for text_type in TEXT_TYPES]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    plain = CLIPTokenizer()
    learner.normalizer = plain.backend_tokenizer.normalizer
    learner.pre_tokenizer = plain.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = 2 * len(alphabet) + 512
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    learner.train_from_iterator(captions, trainer)
    model = json.loads(learner.to_str())["model"]
    vocab = dict.fromkeys([*model["vocab"], *(f"{symbol}</w>" for symbol in alphabet)])
    numbered = {symbol: number for number, symbol in enumerate([*vocab, "<|startoftext|>", "<|endoftext|>"])}
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=numbered, merges=merges, model_max_length=CONTEXT)


class CaptionedCLIP(CLIPModel):
    """A CLIP whose loss compares images with the captions of their species, of one text type at a time."""

    def __init__(self, config: CLIPConfig):
        super().__init__(config)
        tokenizer = build_tokenizer()
        for text_type in TEXT_TYPES:
            captions = [taxon.caption(text_type) for taxon in taxa()]
            encoded = tokenizer(captions, padding="max_length", max_length=CONTEXT, return_tensors="pt")
            self.register_buffer(f"ids_{text_type}", encoded["input_ids"], persistent=False)

    def forward(self, pixel_values, labels=None, **kwargs):
        # Drawn for the whole batch, as in BioCLIP; evaluation reads the full path.
        text_type = TEXT_TYPES[int(torch.randint(len(TEXT_TYPES), ()))] if self.training else "taxon"
        images = self.visual_projection(self.vision_model(pixel_values).pooler_output)
        ids = getattr(self, f"ids_{text_type}")
        ids = ids[:, : int((ids == self.config.text_config.eos_token_id).int().argmax(dim=1).max()) + 1]
        texts = self.text_projection(self.text_model(ids).pooler_output)
        self.logit_scale.data.clamp_(0, math.log(100))
        loss = None
        if labels is not None:
            loss = contrastive_loss(images.float(), texts[labels].float(), self.logit_scale, taxon_ids=labels)
        cosines = torch.nn.functional.normalize(images, dim=-1) @ torch.nn.functional.normalize(texts, dim=-1).T
        return ImageClassifierOutput(loss=loss, logits=cosines)


def build_model() -> CaptionedCLIP:
    """Returns the untrained model, with a vision tower of the size of `vit-nano`."""
    size = len(build_tokenizer())
    shared = {"hidden_size": 128, "num_attention_heads": 4, "projection_dim": 64}
    text = {"num_hidden_layers": 3, "intermediate_size": 256, "max_position_embeddings": CONTEXT, "vocab_size": size}
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    vision = {"num_hidden_layers": 6, "intermediate_size": 512, "image_size": 64, "patch_size": 8}
    config = CLIPConfig(text_config={**shared, **text, **ids}, vision_config={**shared, **vision}, projection_dim=64)
    return CaptionedCLIP(config)


def save_processor(folder: Path) -> None:
    """Writes the tokenizer and the image processor, the latter also by itself."""
    square = {"height": 64, "width": 64}
    images = CLIPImageProcessorPil(
        size=square, crop_size=square, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    images.save_pretrained(folder)
    CLIPProcessor(images, build_tokenizer()).save_pretrained(folder)


if __name__ == "__main__":
    folder = train(
        "clip-nano",
        build_model,
        CLIPModel,
        learning_rate=1.5e-3,
        prepare=lambda model: model.set_attn_implementation("eager"),  # faster than sdpa at 65 tokens on the CPU
    )
    save_processor(folder)
