"""The parts of llava-nano: word-level tokenizer, configuration, processor, and how they are saved."""

from collections.abc import Sequence
from pathlib import Path

import torch
from llava_nano_data import IMAGE_SIZE, PATCH_SIZE
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from hf_diorama.draws import Draws
from hf_diorama.questions import KINDS, MAX_IMAGES, ask, build_turn, draw_contents

VISION_CONFIG = CLIPVisionConfig(
    image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
    intermediate_size=256, projection_dim=128, hidden_act="gelu",
)  # fmt: skip
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
IMAGE_TOKEN = "<image>"
SPECIAL_TOKENS = (*SPECIAL.values(), IMAGE_TOKEN)


def build_tokenizer(photo_labels: list[str], known: Sequence[str] = SPECIAL_TOKENS) -> PreTrainedTokenizerFast:
    """Returns a word-level tokenizer over all words of questions and answers, collected from 2,000 random ones.

    Tokens that are `known` come first, in their order.
    """
    words = {"image", *photo_labels, *map(str, range(MAX_IMAGES + 1))}
    splitter = pre_tokenizers.Whitespace()
    for i in range(2000):
        contents = draw_contents(Draws("vocabulary", i), 1 + i % MAX_IMAGES, photo_labels)
        question = ask(contents, KINDS[i % len(KINDS)], Draws("vocabulary", i, "ask"))
        if question is not None:
            text = f"{build_turn(question.question)} {question.answer}"
            words.update(word for word, _ in splitter.pre_tokenize_str(text))
    vocabulary = {word: i for i, word in enumerate([*known, *sorted(words.difference(known))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", model_max_length=1024, clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"], extra_special_tokens={"image_token": IMAGE_TOKEN},
        **SPECIAL,
    )  # fmt: skip


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Returns the processor: any image to a square of pixels in [-1, 1], one placeholder to all its tokens."""
    image_processor = LlavaImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    return LlavaProcessor(
        image_processor, tokenizer, patch_size=PATCH_SIZE, vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN, num_additional_image_tokens=1,
    )  # fmt: skip


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Returns the untrained model; queries of the language model start as copies of keys."""
    text_config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True,
        initializer_range=128**-0.5,  # the usual 0.02 is made for widths of thousands; images would go unheard here
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=VISION_CONFIG, text_config=text_config, vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        torch.nn.init.normal_(attention.k_proj.weight, std=config.text_config.hidden_size**-0.5)
        keys = attention.k_proj.weight.view(2, 1, 32, 128).expand(2, 2, 32, 128)
        attention.q_proj.weight.data.copy_(keys.reshape(128, 128))
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, max_new_tokens=64, do_sample=False
    )
    return model


def load_model(folder: Path, photo_labels: list[str]) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast]:
    """Returns a trained model in fp32 and its tokenizer; words of questions that it did not know come last."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder).get_vocab()
    tokenizer = build_tokenizer(photo_labels, sorted(ids, key=ids.__getitem__))
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # new ones start as those of `build_model` do
    return model, tokenizer


def save_pretrained(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Saves a half-precision copy of the model, and its processor."""
    weights = {name: x.half() if x.is_floating_point() else x for name, x in model.state_dict().items()}
    half = LlavaForConditionalGeneration(model.config)
    half.load_state_dict(weights)
    half.generation_config = model.generation_config
    half.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written for its owner alone; to be read by everybody
