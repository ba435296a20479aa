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

from hf_compbench.functional import rotate_options
from hf_compbench.groups import hash_unit
from hf_compbench.prompting import Prompt, build_messages, load_prompt
from hf_compbench.runners.store import ResponseStore, read_responses
from hf_compbench.scoring import ORDERS

Shown = Literal["own", "blank", "shuffled"]
Mode = Literal["generate", "logprob"]
Place = tuple[int, str, int]
"""Row, image order and shift of the options: what one question is."""


@dataclass(frozen=True)
class Request:
    """One question as it is asked: images in the order shown, the chat, and what names it.

    Args:
        key: of everything that can change the answer: the model with its weights and processor, the chat, the options
            and the pixels.
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


def list_places(
    dataset: datasets.Dataset, orders: Sequence[str], option_shifts: int, indices: Iterable[int] | None = None
) -> list[Place]:
    """Returns every question of the rows: one picture of two images has one order, and only things are shifted."""
    columns = dataset.select_columns(["options", "image_2_key"])
    places = []
    for index in indices if indices is not None else range(len(dataset)):
        row = columns[index]
        shifts = 1 if "Left" in row["options"] else min(option_shifts, len(row["options"]))
        asked = [order for order in orders if order == "12" or row["image_2_key"]]
        places += [(index, order, shift) for order in asked for shift in range(shifts)]
    return places


def build_requests(
    dataset: datasets.Dataset,
    runner: Any,
    prompt: Prompt,
    places: Iterable[Place],
    *,
    layout: str = "interleaved",
    shown: Shown = "own",
    mode: Mode = "generate",
) -> Iterator[Request]:
    """Yields the questions at the places of [`list_places`], images of a row decoded once."""
    names = {column: dataset.features[column].int2str for column in ("relativity", "source")}
    plain = dataset.remove_columns(["image_1", "image_2", "composite"])
    about = [runner.name, getattr(runner, "fingerprint", ""), mode, prompt.id, prompt.digest, layout]
    last, pictures = None, []
    for index, order, shift in places:
        if index != last:
            last, pictures = index, _load_images(dataset, index, shown)
            row = {**plain[index]}
            row |= {column: to_name(row[column]) for column, to_name in names.items()}
        images = pictures if order == "12" else pictures[::-1]
        messages = build_messages(prompt, row, images, layout, shift)
        shifted, _ = rotate_options(row["options"], shift)
        choices = [prompt.scored_text(row, option, shift) for option in shifted]
        asked = [*about, order, shift, row["id"], shifted, choices, _texts(messages), *map(_hash_image, images)]
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        yield Request(key, row, images, messages, choices, order, shift)


def _texts(messages: list[dict[str, Any]]) -> list[str]:
    return [part.get("text", "<image>") for message in messages for part in message["content"]]


def _hash_image(image: Image.Image) -> str:
    return hashlib.sha256(repr((image.size, image.mode)).encode() + image.tobytes()).hexdigest()


def _load_images(rows: datasets.Dataset, index: int, shown: Shown) -> list[Image.Image]:
    """The images of a row: its own, gray ones of their sizes, or those of another row."""
    if shown == "shuffled" and len(rows) < 2:
        raise ValueError(f"Expected at least two rows to show one the images of another, got {len(rows)}.")
    row = rows[(index + max(1, len(rows) // 2)) % len(rows)] if shown == "shuffled" else rows[index]
    if row["image_1"] is None and row["composite"] is None:
        raise ValueError(f"Row {row['id']!r} has no images; resolve them with `image_root` first.")
    images = [row["composite"]] if row["image_2"] is None else [row["image_1"], row["image_2"]]
    if shown == "blank":
        images = [Image.new("RGB", image.size, (128, 128, 128)) for image in images]
    return [image.convert("RGB") for image in images]


def run_model(
    dataset: datasets.Dataset,
    runner: Any,
    *,
    store: str | Path | None = None,
    prompt: str | Path = "v2",
    layout: str | None = None,
    orders: Sequence[str] = ORDERS,
    mode: Mode = "generate",
    shown: Shown = "own",
    option_shifts: int = 1,
    batch_size: int = 32,
    distributed: bool = False,
) -> list[dict[str, Any]]:
    """Returns the responses of a model to every question, in both image orders.

    Args:
        dataset: canonical rows with images.
        runner: a [`TransformersRunner`], a [`HeuristicRunner`], or an object with `name` and `generate(requests)`, and
            `score_options(requests)` for `mode="logprob"`; its `fingerprint`, if there, stands for weights and
            processor in the store. None as an answer says that a question failed: it is stored as an error, scored as
            missing, and asked again by the next run. What a runner raises ends the run; the store keeps what was
            answered.
        store: JSONL file of responses; a second call, also after a crash, goes on where it stopped.
        prompt: `"paper-v1"`, `"v2"`, `"nano"`, or a JSON file of your own.
        layout: see [`hf_compbench.prompting.build_messages`]; by default the runner's (`"interleaved"` unless the
            model takes one image only).
        orders: image orders, `"12"` and `"21"`.
        mode: `"generate"` for replies, `"logprob"` for log-probabilities of the options.
        shown: `"own"` images; `"blank"` or `"shuffled"` ones for baselines.
        option_shifts: how many circular shifts of options are asked where options are no sides.
        batch_size: questions that are handed to the runner at once, which sorts them by length and batches them by
            tokens; a crash loses so many answers at most.
        distributed: share the questions among the processes of `accelerate launch`; each writes a file of its own
            beside `store`, and all return everything.

    Returns:
        dicts with `key`, `id`, `order`, `shift`, `reply` or `scores`, `model`, `fingerprint`, `prompt`, `prompt_hash`,
        `layout`, `mode`, `shown`.

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
    if shown not in ("own", "blank", "shuffled"):
        raise ValueError(f"Expected `shown` to be 'own', 'blank' or 'shuffled', got {shown!r}.")
    if distributed and store is None:
        raise ValueError("Expected `store` with distributed=True: the processes meet in its files.")
    wording = load_prompt(prompt)
    used_layout = layout if layout is not None else str(getattr(runner, "layout", "interleaved"))
    rank, world = _find_process() if distributed else (0, 1)
    indices = [i for i, row_id in enumerate(dataset["id"][:]) if int(hash_unit("shard", row_id) * world) == rank]
    places = list_places(dataset, orders, option_shifts, indices)
    about = {
        "model": runner.name,
        "fingerprint": getattr(runner, "fingerprint", ""),
        "prompt": wording.id,
        "prompt_hash": wording.digest,
        "layout": used_layout,
        "mode": mode,
        "shown": shown,
    }
    requests = build_requests(dataset, runner, wording, places, layout=used_layout, shown=shown, mode=mode)
    with tqdm(total=len(places), desc=runner.name, disable=None) as progress:
        if store is None:
            return [
                response
                for batch in _batches(_watch(requests, progress), batch_size)
                for response in _ask(runner, batch, about)
            ]
        path = _part_path(Path(store), rank, world)
        with ResponseStore(path) as responses:
            keys = _ask_what_is_new(_watch(requests, progress), runner, about, responses, batch_size)
            if world == 1:
                return [responses[key] for key in keys]
    return _gather(keys, [_part_path(Path(store), i, world) for i in range(world)])


def _watch(requests: Iterable[Request], progress: Any) -> Iterator[Request]:
    for request in requests:
        yield request
        progress.update(1)


def _part_path(store: Path, rank: int, world: int) -> Path:
    """The file that one of several processes writes."""
    return store if world == 1 else store.with_name(f"{store.stem}-{rank:05d}-of-{world:05d}{store.suffix}")


def _batches(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    batch: list[Request] = []
    for request in requests:
        batch.append(request)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _ask_what_is_new(
    requests: Iterable[Request], runner: Any, about: dict[str, Any], store: ResponseStore, batch_size: int
) -> list[str]:
    """Asks what the store does not hold yet; returns the keys of all requests in their order."""
    keys = []

    def find_new() -> Iterator[Request]:
        for request in requests:
            keys.append(request.key)
            if request.key not in store:
                yield request

    for batch in _batches(find_new(), batch_size):
        for response in _ask(runner, batch, about):
            store.append(response)
    return keys


def _ask(runner: Any, batch: Sequence[Request], about: dict[str, Any]) -> list[dict[str, Any]]:
    generates = about["mode"] == "generate"
    name, answers = ("reply", runner.generate(batch)) if generates else ("scores", runner.score_options(batch))
    return [
        {
            "key": request.key,
            "id": request.row["id"],
            "order": request.order,
            "shift": request.shift,
            **({"status": "error"} if answer is None else {name: answer}),
            **about,
        }
        for request, answer in zip(batch, answers, strict=True)
    ]


def _find_process() -> tuple[int, int]:
    """Rank, and number of processes."""
    try:
        import torch
        from accelerate import PartialState
    except ImportError:
        raise ImportError('Several processes need accelerate: pip install "hf-compbench[runner]".') from None
    state = PartialState(cpu=not torch.cuda.is_available())
    return state.process_index, state.num_processes


def _gather(keys: list[str], parts: Sequence[Path]) -> list[dict[str, Any]]:
    """The responses to the keys of all processes, which meet here; their files may hold other runs as well."""
    from accelerate.utils import gather_object

    wanted = set(gather_object(keys))
    return [response for part in parts for response in read_responses(part) if response["key"] in wanted]
