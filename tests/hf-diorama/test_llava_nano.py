"""The shipped llava-nano: loads with the Auto classes, sees what it is shown, stops, answers held-out questions."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

import hf_diorama
from hf_diorama.questions import build_prompt, build_turn, multi_image_questions

IMAGE_TOKENS = 16


@pytest.fixture(scope="module")
def folder():
    return Path(hf_diorama.model_path("llava-nano"))


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def answers(model, processor, rows):
    prompts = [build_prompt(row["num_images"], row["question"]) for row in rows]
    inputs = processor(text=prompts, images=[row["images"] for row in rows], padding=True, return_tensors="pt")
    tokens = model.generate(**inputs)
    return tokens[:, inputs["input_ids"].shape[1] :]


def test_model_is_a_stock_llava_in_a_few_half_precision_megabytes(folder, model):
    assert type(model) is LlavaForConditionalGeneration
    assert AutoModelForImageTextToText.from_pretrained(folder).dtype == torch.float16
    assert (folder / "model.safetensors").stat().st_size < 10e6
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6


def test_processor_expands_each_placeholder_and_pads_on_the_left(processor, model):
    rows = [next(multi_image_questions(1, num_images=k)) for k in (1, 3)]
    prompts = [build_prompt(row["num_images"], row["question"]) for row in rows]
    inputs = processor(text=prompts, images=[row["images"] for row in rows], padding=True, return_tensors="pt")
    is_image = inputs["input_ids"] == model.config.image_token_id
    assert is_image.sum(dim=1).tolist() == [IMAGE_TOKENS, 3 * IMAGE_TOKENS]
    assert inputs["pixel_values"].shape == (4, 3, 64, 64)
    assert inputs["attention_mask"][0, 0] == 0
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1]
    assert inputs["input_ids"][0, 0] == model.config.text_config.pad_token_id


def test_pixels_are_scaled_to_one_and_other_sizes_are_resized(processor):
    image = next(multi_image_questions(1, num_images=1))["images"][0]
    pixels = processor.image_processor([image, image.resize((32, 32)), image.resize((200, 100))], return_tensors="pt")
    expected = torch.from_numpy(np.asarray(image) / 127.5 - 1).permute(2, 0, 1).float()
    torch.testing.assert_close(pixels["pixel_values"][0], expected, atol=1e-5, rtol=0)
    assert pixels["pixel_values"].shape == (3, 3, 64, 64)


def test_every_word_of_questions_and_answers_is_known(processor):
    unknown = processor.tokenizer.unk_token_id
    for row in multi_image_questions(70, num_images=(1, 16)):
        text = f"{build_turn(row['question'])} {row['answer']}"
        assert unknown not in processor.tokenizer(text)["input_ids"]
        assert processor.tokenizer.decode(processor.tokenizer(row["answer"])["input_ids"]) == row["answer"]


def test_generation_stops_by_itself_with_the_end_token(model, processor):
    rows = list(multi_image_questions(12, split="heldout", num_images=(1, 6)))
    tokens = answers(model, processor, rows)
    assert ((tokens == model.generation_config.eos_token_id).sum(dim=1) > 0).all()
    assert tokens.shape[1] < 40


def test_answers_do_not_depend_on_padding_or_batch(model, processor):
    rows = list(multi_image_questions(6, split="heldout", num_images=(1, 6)))
    together = processor.batch_decode(answers(model, processor, rows), skip_special_tokens=True)
    alone = [processor.decode(answers(model, processor, [row])[0], skip_special_tokens=True) for row in rows]
    assert together == alone


def test_pixel_path_equals_features_put_in_by_hand(model, processor):
    # Training feeds cached features of the tower through the projector; `pixel_values` has to give the same logits.
    row = next(multi_image_questions(1, split="heldout", num_images=3))
    prompt = build_prompt(row["num_images"], row["question"])
    inputs = processor(text=[prompt], images=[row["images"]], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
        hidden = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-1]
        projected = model.model.multi_modal_projector(hidden[:, 1:].half().float())  # the cache is in half precision
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        embeds[inputs["input_ids"] == model.config.image_token_id] = projected.flatten(0, 1)
        by_hand = model.lm_head(model.model.language_model(inputs_embeds=embeds).last_hidden_state)
    torch.testing.assert_close(by_hand, expected, atol=0.05, rtol=0.01)
    assert torch.equal(by_hand.argmax(-1), expected.argmax(-1))


def test_changing_the_asked_image_changes_the_answer(model, processor):
    # Not the question but the picture decides: the same question about images in another order.
    moved = 0
    for row in multi_image_questions(15, split="heldout", num_images=4, kinds=["color"]):
        turned = {**row, "images": row["images"][::-1]}
        first, second = processor.batch_decode(answers(model, processor, [row, turned]), skip_special_tokens=True)
        moved += first != second
    assert moved >= 8


def test_held_out_exact_match_is_that_of_the_card(folder, model, processor):
    # 108 questions without photos: the card's share (which is with photos behind half of the objects) less 10 points.
    card = json.loads((folder / "evaluation.json").read_text())
    hits = defaultdict(list)
    for num_images in (2, 5, 8):
        questions = multi_image_questions(36, split="heldout", seed=99, num_images=num_images)
        rows = list(questions)
        texts = processor.batch_decode(answers(model, processor, rows), skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            hits[row["kind"]].append(text == row["answer"])
    share = np.mean([hit for kind in hits.values() for hit in kind])
    assert share >= card["all_kinds_but_photo"]["1-8"]["exact_match"] - 0.10
    for kind, kind_hits in hits.items():  # 18 questions a kind: three standard errors are a third at most
        least = card["by_kind"][kind]["1-8"]["exact_match"]
        assert np.mean(kind_hits) >= least - 3 * (least * (1 - least) / len(kind_hits)) ** 0.5 - 0.05, kind


def test_card_shows_the_measured_numbers(folder):
    card, result = (folder / "README.md").read_text(), json.loads((folder / "evaluation.json").read_text())
    assert f"{100 * result['all_kinds_but_photo']['1-8']['exact_match']:.1f} [" in card
    assert result["split"] == "heldout"
    for kind, cells in result["by_kind"].items():
        assert f"| {kind} | {100 * cells['1-8']['chance']:.1f} | {cells['1-8']['n']} |" in card
