"""Asks every question in both image orders, resumably, on one process or several."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets.utils import tqdm
from PIL import Image

from hf_compbench.groups import hash_unit
from hf_compbench.prompting import Prompt, build_messages, load_prompt
from hf_compbench.runners.store import ResponseStore, read_responses
from hf_compbench.scoring import ORDERS

Shown = Literal["own", "blank", "shuffled"]


@dataclass(frozen=True)
class Request:
    """One question as it is asked: images in the order shown, the chat, and what names it.

    Args:
        key: of everything that can change the answer: model, prompt, layout, order, options, images.
        row: the canonical row, images left out.
        images: in the order shown.
        messages: the chat.
        choices: what the model would say for each option, in the row's order of options moved by `shift`.
        order, shift: image order, and places by which options are moved.
    """

    key: str
    row: dict[str, Any]
    images: list[Image.Image]
    messages: list[dict[str, Any]]
    choices: list[str]
    order: str
    shift: int


def _hash_image(image: Image.Image) -> str:
    return hashlib.sha256(repr((image.size, image.mode)).encode() + image.tobytes()).hexdigest()


def _show(rows: datasets.Dataset, number: int, order: str, shown: Shown) -> list[Image.Image]:
    """The images of a row in the order asked for; its own, gray ones of their sizes, or those of another row."""
    row = rows[(number + 1 + len(rows) // 2) % len(rows)] if shown == "shuffled" else rows[number]
    if row["image_1"] is None and row["composite"] is None:
        raise ValueError(f"Row {row['id']!r} has no images; resolve them with `image_root` first.")
    images = [row["composite"]] if row["image_2"] is None else [row["image_1"], row["image_2"]]
    if shown == "blank":
        images = [Image.new("RGB", image.size, (128, 128, 128)) for image in images]
    images = [image.convert("RGB") for image in images]
    return images if order == "12" else images[::-1]


def build_requests(
    dataset: datasets.Dataset,
    name: str,
    prompt: Prompt,
    *,
    layout: str = "interleaved",
    orders: Sequence[str] = ORDERS,
    shown: Shown = "own",
    option_shifts: int = 1,
    mode: str = "generate",
    numbers: Iterable[int] | None = None,
) -> Iterator[Request]:
    """Yields every question of a dataset in every order and shift; one picture of two images has one order only.

    Options are moved only where they are no sides.
    """
    images = ["image_1", "image_2", "composite"]
    names = {column: dataset.features[column].int2str for column in ("relativity", "source")}
    plain = dataset.remove_columns(images)
    for number in numbers if numbers is not None else range(len(dataset)):
        row = {**plain[number]}
        row |= {column: to_name(row[column]) for column, to_name in names.items()}
        has_sides = "Left" in row["options"]
        for order in orders:
            pictures = _show(dataset, number, order, shown)
            if order == "21" and len(pictures) == 1:
                continue
            for shift in range(1 if has_sides else min(option_shifts, len(row["options"]))):
                about = [name, mode, prompt.id, prompt.digest, layout, order, shift, row["id"]]
                digest = json.dumps([*about, *map(_hash_image, pictures)])
                shifted = row["options"][shift:] + row["options"][:shift]
                yield Request(
                    key=hashlib.sha256(digest.encode()).hexdigest(),
                    row=row,
                    images=pictures,
                    messages=build_messages(prompt, row, pictures, layout, shift),
                    choices=[prompt.scored_text(row, option, shift) for option in shifted],
                    order=order,
                    shift=shift,
                )


def run_model(
    dataset: datasets.Dataset,
    runner: Any,
    *,
    store: str | Path | None = None,
    prompt: str | Path = "v2",
    layout: str | None = None,
    orders: Sequence[str] = ORDERS,
    mode: Literal["generate", "logprob"] = "generate",
    shown: Shown = "own",
    option_shifts: int = 1,
    batch_size: int = 8,
    distributed: bool = False,
) -> list[dict[str, Any]]:
    """Returns the responses of a model to every question, in both image orders.

    Args:
        dataset: canonical rows with images.
        runner: a [`TransformersRunner`], a [`HeuristicRunner`], or an object with `name` and `generate(requests)`, and
            `score_options(requests)` for `mode="logprob"`.
        store: JSONL file of responses; a second call, also after a crash, goes on where it stopped.
        prompt: `"paper-v1"`, `"v2"`, `"nano"`, or a JSON file of your own.
        layout: see [`hf_compbench.prompting.build_messages`]; by default the runner's (`"interleaved"` unless the
            model takes one image only).
        orders: image orders, `"12"` and `"21"`.
        mode: `"generate"` for replies, `"logprob"` for log-probabilities of the options.
        shown: `"own"` images; `"blank"` or `"shuffled"` ones for baselines.
        option_shifts: how many circular shifts of options are asked where options are no sides.
        batch_size: questions that are handed to the runner at once.
        distributed: share the questions among the processes of `accelerate launch`; each writes a file of its own
            beside `store`, and all return everything.

    Returns:
        dicts with `key`, `id`, `order`, `shift`, `reply` or `scores`, `model`, `prompt`, `layout`, `shown`.

    Example:

    ```python
    >>> from hf_compbench import load_compbench, score
    >>> from hf_compbench.runners import HeuristicRunner, run_model
    >>> ds = load_compbench("mini", num_pairs=8, relativities=("quantity",), image_size=64)
    >>> responses = run_model(ds, HeuristicRunner("left"))
    >>> score(ds, responses, num_bootstrap=100).columns["MS-quantity"]["pair_accuracy"]
    0.0

    ```
    """
    if mode not in ("generate", "logprob"):
        raise ValueError(f"Expected `mode` to be 'generate' or 'logprob', got {mode!r}.")
    if distributed and store is None:
        raise ValueError("Expected `store` with distributed=True: the processes meet in its files.")
    wording = load_prompt(prompt)
    layout = layout or getattr(runner, "layout", "interleaved")
    rank, world, wait = _find_processes() if distributed else (0, 1, lambda: None)
    numbers = [i for i, row_id in enumerate(dataset["id"][:]) if int(hash_unit("shard", row_id) * world) == rank]
    options: dict[str, Any] = {
        "layout": layout,
        "orders": orders,
        "shown": shown,
        "option_shifts": option_shifts,
        "mode": mode,
    }
    about = {"model": runner.name, "prompt": wording.id, "layout": layout, "shown": shown}
    requests = build_requests(dataset, runner.name, wording, numbers=numbers, **options)
    if store is None:
        return [response for batch in _batches(requests, batch_size) for response in _ask(runner, batch, mode, about)]
    path = Path(store)
    own = path.with_name(f"{path.stem}-{rank:05d}-of-{world:05d}{path.suffix}") if world > 1 else path
    done = []
    total = len(numbers) * len(orders)
    with ResponseStore(own) as responses, tqdm(total=total, desc=runner.name, disable=None) as progress:
        pending: list[Request] = []
        for request in requests:
            done.append(request.key)
            progress.update(1)
            if request.key not in responses:
                pending.append(request)
            if len(pending) == batch_size:
                _ask_and_keep(runner, pending, mode, about, responses)
                pending = []
        _ask_and_keep(runner, pending, mode, about, responses)
        mine = [responses[key] for key in done]
    wait()
    if world == 1:
        return mine
    parts = [path.with_name(f"{path.stem}-{i:05d}-of-{world:05d}{path.suffix}") for i in range(world)]
    everything = (response for part in parts for response in read_responses(part))
    name = "reply" if mode == "generate" else "scores"
    return [
        one for one in everything if name in one and all(one[key] == about[key] for key in about)
    ]  # the store may hold other runs


def _batches(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    batch: list[Request] = []
    for request in requests:
        batch.append(request)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _ask(runner: Any, batch: Sequence[Request], mode: str, about: dict[str, Any]) -> list[dict[str, Any]]:
    name, answers = (
        ("reply", runner.generate(batch)) if mode == "generate" else ("scores", runner.score_options(batch))
    )
    return [
        {"key": r.key, "id": r.row["id"], "order": r.order, "shift": r.shift, name: answer, **about}
        for r, answer in zip(batch, answers, strict=True)
    ]


def _ask_and_keep(
    runner: Any, batch: Sequence[Request], mode: str, about: dict[str, Any], store: ResponseStore
) -> None:
    if batch:
        for response in _ask(runner, batch, mode, about):
            store.append(response)


def _find_processes() -> tuple[int, int, Any]:
    """Rank, number of processes, and how to wait for the others."""
    try:
        import torch
        from accelerate import PartialState
    except ImportError:
        raise ImportError('Several processes need accelerate: pip install "hf-compbench[runner]".') from None
    state = PartialState(cpu=not torch.cuda.is_available())
    return state.process_index, state.num_processes, state.wait_for_everyone
