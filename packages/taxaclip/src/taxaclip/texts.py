"""Text embeddings: of texts as they are, and of names in prompts, averaged over templates."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BatchEncoding, CLIPModel, CLIPProcessor
from transformers.utils.logging import tqdm

from taxaclip.parts import Parts
from taxaclip.provenance import hash_model, hash_processor
from taxaclip.taxonomy import clean_text

TEMPLATES = ("a photo of {}.",)

logger = logging.getLogger(__name__)


def count_cut(tokens: BatchEncoding) -> int:
    """Returns how many texts were longer than the tokenizer's `max_length`, and so lost their end.

    Args:
        tokens (`BatchEncoding`): of a tokenizer with `truncation=True`.
    """
    return sum(bool(encoding.overflowing) for encoding in tokens.encodings or ())


@torch.no_grad()
def embed_texts(model: CLIPModel, processor: CLIPProcessor, texts: Sequence[str]) -> torch.Tensor:
    """Returns the normalised text embeddings, (num_texts, dim), float32, on the CPU.

    Args:
        model (`CLIPModel`): any CLIP.
        processor (`CLIPProcessor`): its processor.
        texts (sequence of `str`): the texts; those longer than the context are cut, and their number is logged.
    """
    length = model.text_model.embeddings.position_embedding.num_embeddings
    inputs = processor.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
    if cut := count_cut(inputs):
        logger.warning(
            "%d of %d texts have more than %d tokens and lost their end, such as a name", cut, len(texts), length
        )
    inputs = inputs.to(model.device)
    pooled = model.text_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).pooler_output
    return torch.nn.functional.normalize(model.text_projection(pooled).float(), dim=-1).cpu()


def embed_names(
    model: CLIPModel,
    processor: CLIPProcessor,
    names: Sequence[str],
    *,
    templates: Sequence[str] = TEMPLATES,
    batch_size: int = 256,
    parts_dir: Path | None = None,
) -> torch.Tensor:
    """Returns the embeddings of names in prompts, averaged over the templates, (num_names, dim), with progress.

    A name that comes twice is embedded once, and prompts of like lengths come together.

    Args:
        model (`CLIPModel`): any CLIP.
        processor (`CLIPProcessor`): its processor.
        names (sequence of `str`): the names.
        templates (sequence of `str`, defaults to `("a photo of {}.",)`): prompts with one `{}` each.
        batch_size (`int`, defaults to 256): prompts at a time.
        parts_dir (`Path`, *optional*): folder in which batches are kept, so that a stopped call with the same
            arguments goes on; removed at the end.

    Raises:
        ValueError: for no name, templates without one `{}`, or a batch size below 1.
    """
    if not names or batch_size < 1:
        raise ValueError(f"Expected at least one name and a batch size of 1, got {len(names)} and {batch_size}.")
    if not templates or any(template.count("{}") != 1 for template in templates):
        raise ValueError(f"Expected templates with one '{{}}' each, got {list(templates)}.")
    distinct = sorted(set(names), key=lambda text: (len(text), text))
    prompts = [clean_text(template.format(text)) for text in distinct for template in templates]
    chunks = [prompts[at : at + batch_size] for at in range(0, len(prompts), batch_size)]
    hashes = [] if parts_dir is None else [hash_model(model), hash_processor(processor)]
    parts = None if parts_dir is None else Parts(parts_dir, [*hashes, str(batch_size), *prompts])
    embeds = []
    for number, chunk in enumerate(tqdm(chunks, desc="texts", disable=None)):
        if parts is None:
            embeds.append(embed_texts(model, processor, chunk))
        else:
            embeds.append(parts.get(number, lambda chunk=chunk: (embed_texts(model, processor, chunk), {})))  # type: ignore[misc]
    mean = torch.cat(embeds).unflatten(0, (len(distinct), len(templates))).mean(dim=1)
    if parts is not None:
        parts.remove()
    row = {text: number for number, text in enumerate(distinct)}
    chosen: torch.Tensor = mean[[row[text] for text in names]]
    return chosen
