"""Runs image-text-to-text models of transformers by their chat template."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from PIL import Image

from hf_compbench.fingerprints import hash_texts, hash_weights

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
Work = Callable[[list[Any], Any], list[Result]]
"""Requests and their inputs -> a result for each."""
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% if not loop.last %} {% endif %}{% endfor %}{% endfor %}"
)
"""A template for models that came without one: texts and image tokens in their order, with blanks between."""


class TransformersRunner:
    """A model and its processor, asked by chats.

    Args:
        model, processor: as from `AutoModelForImageTextToText` and `AutoProcessor`.
        name: names the weights in the store: id, revision and dtype.
        chat_template: a template for processors that have none; `"plain"` for texts and images as they come.
        max_new_tokens: length of a reply. Decoding is greedy.
        max_batch_tokens: tokens of a batch at most, padding included; what runs out of memory is halved.
        weights: hash or commit of the weights, for the store.

    At the start it asks the processor for a chat with two images. Models that take one image only get both as one
    picture (layout `composite`), which is logged as a warning.

    Example:

    ```python
    >>> import hf_diorama
    >>> from hf_compbench import load_compbench
    >>> from hf_compbench.runners import TransformersRunner, run_model
    >>> path = hf_diorama.model_path("llava-nano")
    >>> runner = TransformersRunner.from_pretrained(path, chat_template="plain", max_new_tokens=4)
    >>> ds = load_compbench("mini", num_pairs=8, relativities=("quantity",), image_size=64)
    >>> responses = run_model(ds, runner, prompt="nano", mode="logprob", orders=["12"])
    >>> len(responses), len(responses[0]["scores"])
    (8, 3)

    ```
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str,
        chat_template: str | None = None,
        max_new_tokens: int = 32,
        max_batch_tokens: int = 16_384,
        weights: str = "",
    ):
        self.model, self.processor = model.eval(), processor
        self.name = name
        self.max_new_tokens, self.max_batch_tokens = max_new_tokens, max_batch_tokens
        if chat_template == "plain":
            chat_template = PLAIN_TEMPLATE.replace("IMAGE", processor.image_token)
        self.chat_template = chat_template or getattr(processor, "chat_template", None)
        if self.chat_template is None:
            raise ValueError(
                f"The processor of {name} has no chat template; pass chat_template='plain' or a template of your own."
            )
        processor.tokenizer.padding_side = "left"
        inputs = (processor.to_json_string(), processor.tokenizer.backend_tokenizer.to_str(), self.chat_template)
        generation = model.generation_config.to_json_string() if model.generation_config else ""
        self.fingerprint = hash_texts(weights, *inputs, generation, str(max_new_tokens))
        self.layout = "interleaved" if self.has_two_image_chats() else "composite"
        if self.layout == "composite":
            logger.warning("%s takes one image at a time: both are shown as one picture (layout 'composite')", name)

    @classmethod
    def from_pretrained(
        cls, path: str, *, dtype: str = "float32", device: str = "cpu", **options: Any
    ) -> "TransformersRunner":
        """Loads model and processor; `**options` as in the class. The weights of a local folder are hashed.

        Raises:
            ImportError: if the processor needs a library that is not installed, such as torchvision for models with a
                video processor.
        """
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError:
            raise ImportError(
                'Running a model needs the extra "runner": pip install "hf-compbench[runner]".'
            ) from None
        try:
            processor = AutoProcessor.from_pretrained(path)
        except ImportError as error:
            raise ImportError(f"The processor of {path} needs a library that is missing: {error}") from None
        model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype)
        model = model.to(device)
        commit = getattr(model.config, "_commit_hash", None)
        name = ":".join(filter(None, (str(path), commit, dtype)))
        return cls(model, processor, name=name, weights=hash_weights(str(path)), **options)

    def has_two_image_chats(self) -> bool:
        """Returns whether a chat with two images holds twice the image tokens of a chat with one."""
        image = Image.new("RGB", (64, 64), "gray")
        counts = []
        for number in (1, 2):
            content: list[dict[str, Any]] = [{"type": "image", "image": image}] * number
            chat = [{"role": "user", "content": [*content, {"type": "text", "text": "?"}]}]
            try:
                inputs = self.encode([chat])
            except (ValueError, IndexError, TypeError, RuntimeError) as error:
                if number == 1:
                    raise
                logger.info("a chat with two images failed: %s", error)
                return False
            counts.append(int((inputs["input_ids"] == self._image_token_id()).sum()))
        return counts[1] == 2 * counts[0] > 0

    def _image_token_id(self) -> int:
        config = self.model.config
        found = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
        return int(found if found is not None else self.processor.image_token_id)

    def encode(self, chats: Sequence[Any]) -> Any:
        """Returns the inputs of the model for a batch of chats, padded on the left."""
        inputs = self.processor.apply_chat_template(
            list(chats),
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def _in_batches(self, requests: Sequence[Any], work: Work[Result]) -> list[Result]:
        """Works through requests from long to short in batches within the budget of tokens; results in their order."""
        inputs = self.encode([request.messages for request in requests])
        if inputs["input_ids"].numel() <= self.max_batch_tokens:
            return self._halve(list(requests), work, inputs)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        order = sorted(range(len(requests)), key=lambda i: -lengths[i])
        results: dict[int, Result] = {}
        while order:
            size = max(1, self.max_batch_tokens // lengths[order[0]])
            batch, order = order[:size], order[size:]
            answers = self._halve([requests[i] for i in batch], work)
            results |= dict(zip(batch, answers, strict=True))
        return [results[i] for i in range(len(requests))]

    def _halve(self, batch: list[Any], work: Work[Result], inputs: Any = None) -> list[Result]:
        """The work on a batch; out of memory, on its halves."""
        import torch

        try:
            return work(batch, self.encode([request.messages for request in batch]) if inputs is None else inputs)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = len(batch) // 2
        logger.warning("out of memory with %d questions: trying %d", len(batch), middle)
        return self._halve(batch[:middle], work) + self._halve(batch[middle:], work)

    def generate(self, requests: Sequence[Any]) -> list[str]:
        """Returns one greedy reply for each request."""
        return self._in_batches(requests, self._generate)

    def _generate(self, batch: list[Any], inputs: Any) -> list[str]:
        import torch

        del batch
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]

    def score_options(self, requests: Sequence[Any]) -> list[list[float]]:
        """Returns for each request the log-probability (nats, summed over tokens) of each option.

        A prompt goes through the model once; all its options then read its cache. Options are encoded after the
        prompt, with a blank between where the tokenizer knows blanks, and without an end token.
        """
        return self._in_batches(requests, self._score)

    def encode_option(self, text: str) -> list[int]:
        """Returns the tokens of an option as they follow the prompt."""
        tokens: list[int] = self.processor.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        return tokens

    def _score(self, batch: list[Any], inputs: Any) -> list[list[float]]:
        import torch

        options = [[self.encode_option(text) for text in request.choices] for request in batch]
        flat = [tokens for one in options for tokens in one]
        owner = torch.tensor([number for number, one in enumerate(options) for _ in one], device=self.model.device)
        longest = max(map(len, flat))
        with torch.inference_mode():
            prefix = self.model(**inputs, use_cache=True, logits_to_keep=1)
            first = _log_softmax(prefix.logits[:, -1])[owner]
            scores = [float(row[tokens[0]]) for row, tokens in zip(first, flat, strict=True)]
            if longest > 1:
                cache = prefix.past_key_values
                cache.batch_select_indices(owner)  # the prompt of each option
                padded = torch.tensor([(tokens + tokens[-1:] * longest)[: longest - 1] for tokens in flat])
                padded = padded.to(self.model.device)
                mask = torch.cat([inputs["attention_mask"][owner], torch.ones_like(padded)], dim=1)
                logits = self.model(input_ids=padded, attention_mask=mask, past_key_values=cache).logits
                logprobs = _log_softmax(logits)
                for number, tokens in enumerate(flat):
                    rest = enumerate(tokens[1:])
                    scores[number] += sum(float(logprobs[number, place, token]) for place, token in rest)
        parts = iter(scores)
        return [[next(parts) for _ in one] for one in options]


def _log_softmax(logits: Any) -> Any:
    """In float32 at least, whatever the model computes in."""
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


def compare_batch_sizes(runner: TransformersRunner, requests: Sequence[Any], size: int) -> list[tuple[str, str]]:
    """Returns the (alone, in a batch) replies that differ when `size` questions are asked at once: wanted are none."""
    chosen = list(requests[:size])
    alone = [runner.generate([request])[0] for request in chosen]
    together = runner._halve(chosen, runner._generate)
    return [(a, b) for a, b in zip(alone, together, strict=True) if a != b]
