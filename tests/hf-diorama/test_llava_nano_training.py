"""llava-nano's training: its forward pass is the model's, and its dialogues know where their answers are seen."""

from pathlib import Path

import pytest
import torch

import hf_diorama
from hf_diorama.draws import Draws
from hf_diorama.questions import KINDS, Content, ask

TRAINING = Path(__file__).parents[2] / "packages" / "hf-diorama" / "training"
LABELS = ["bird", "truck"]
CONTENTS = [
    Content(objects=(("red", "star"), ("blue", "ring"))),
    Content(photo="truck"),
    Content(objects=(("red", "cross"),)),
    Content(objects=(("blue", "cross"), ("green", "moon"))),
]


@pytest.fixture
def training(monkeypatch):
    monkeypatch.syspath_prepend(TRAINING)
    import llava_nano_forward
    import llava_nano_model
    import llava_nano_sequences

    torch.manual_seed(0)
    tokenizer = llava_nano_model.build_tokenizer(LABELS)
    return llava_nano_forward, llava_nano_sequences, tokenizer, llava_nano_model.build_model(tokenizer).eval()


def test_side_by_side_dialogues_equal_the_model_on_each_alone(training):
    forward, _, _, model = training
    features, numbers, ids = torch.randn(2, 3, 16, 128), torch.randint(4, 60, (3, 2)), torch.randint(4, 60, (2, 4, 9))
    llava, decoder = model.model, model.model.language_model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = forward.run(model, features, numbers, ids, torch.float32)
        before = decoder.embed_tokens(numbers).expand(2, -1, -1, -1)
        prefix = torch.cat([before, llava.multi_modal_projector(features)], dim=2).flatten(1, 2)
        for dialogue in range(4):
            embeds = torch.cat([prefix, decoder.embed_tokens(ids[:, dialogue])], dim=1)
            alone = decoder(inputs_embeds=embeds, output_attentions=True)
            torch.testing.assert_close(
                output.hidden[:, dialogue], alone.last_hidden_state[:, 54:], atol=1e-4, rtol=1e-4
            )
            for layer, attention in enumerate(alone.attentions):
                torch.testing.assert_close(output.within[layer], attention[:, :, :54, :54])
                torch.testing.assert_close(output.onto[layer][:, dialogue], attention[:, :, 54:, :54])


def test_named_words_point_to_what_they_name(training):
    _, sequences, tokenizer, _ = training
    material = sequences.Sequences({}, tokenizer, LABELS)
    seen = set()
    for kind in KINDS:
        for attempt in range(40):
            question = ask(CONTENTS, kind, Draws(kind, attempt))
            if question is None:
                continue
            turn = material.encode_turn(CONTENTS, question)
            words = tokenizer.convert_ids_to_tokens(turn.ids)
            for i, (image, place) in enumerate(zip(turn.image, turn.place, strict=True)):
                if image < 0:
                    continue
                content = CONTENTS[image]
                named = content.objects[place - 1] if place else (content.photo, "photo")
                assert words[i if kind == "which" else i + 1] in named
                seen.add(kind)
            for i, votes in enumerate(turn.votes):
                if votes < 0:
                    continue
                shown = [content for content in CONTENTS if any(words[i] in item for item in content.objects)]
                assert votes.bit_count() == len(shown) == int(words[-2])
                seen.add(kind)
            hints = [hint for hint in turn.hint if hint >= 0]
            assert hints == ([turn.ids[-2]] if kind in ("which", "count") else [])
    assert seen == set(KINDS)


def test_going_on_from_a_model_adds_the_words_that_it_lacks(training):
    import llava_nano_model

    folder = hf_diorama.model_path("llava-nano")
    old = llava_nano_model.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    ids = llava_nano_model.AutoTokenizer.from_pretrained(folder).get_vocab()
    model, tokenizer = llava_nano_model.load_model(folder, ["zebra", "cat"])
    assert tokenizer.get_vocab() == {**ids, "zebra": len(ids)}
    embeddings = model.get_input_embeddings().weight
    assert embeddings.shape == (len(ids) + 1, 128)
    assert torch.equal(embeddings[:-1], old.get_input_embeddings().weight)
    assert model.lm_head.weight is embeddings


def test_batches_hold_whole_turns_and_their_fields(training):
    _, sequences, tokenizer, _ = training
    index = {}
    for i, content in enumerate(
        [*CONTENTS, *(Content(objects=((c, s),)) for c in ("red", "blue") for s in ("star",))]
    ):
        index[content] = [i]
    material = sequences.Sequences(index, tokenizer, LABELS)
    material._context = lambda draws, num_images: CONTENTS  # drawing contents is tested with the questions
    batch = material.draw(Draws("batch"), 4, 2, 5)
    assert batch.rows.tolist() == [[0, 1, 2, 3]] * 2
    assert batch.ids.shape == (2, 5, 32)
    for row, mask in zip(batch.ids.flatten(0, 1), batch.is_answer.flatten(0, 1), strict=True):
        words = tokenizer.convert_ids_to_tokens(row)
        assert words[0] == "question"
        assert words.count("answer") == words.count("</s>") == int((mask[1:] & ~mask[:-1]).sum()) >= 1
