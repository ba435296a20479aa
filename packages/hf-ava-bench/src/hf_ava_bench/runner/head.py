"""A language model as the head of a frozen tower: connector, prompt, loss, answers."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import nn

IGNORED = -100
Encoded = dict[str, Any]


def build_connector(width: int, hidden_size: int) -> nn.Sequential:
    """Returns `mlp2x_gelu`, the paper's connector: linear, GELU, linear.

    Example:

    ```python
    >>> from hf_ava_bench.runner.head import build_connector
    >>> sum(parameter.numel() for parameter in build_connector(1024, 896).parameters())
    1722112

    ```
    """
    return nn.Sequential(nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))


class AvaHead(nn.Module):
    """Connector and language model; visual tokens stand where the prompt has its image.

    Args:
        llm (`torch.nn.Module`): a causal language model of transformers, maybe with adapters of peft.
        width (`int`): width of the visual tokens.

    Example:

    ```python
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from hf_ava_bench.runner.head import AvaHead
    >>> config = LlamaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    ...                      intermediate_size=32)
    >>> head = AvaHead(LlamaForCausalLM(config), width=8)
    >>> ids = torch.tensor([[5, 0, 0, 6, 7]])
    >>> is_image = torch.tensor([[False, True, True, False, False]])
    >>> head(features=torch.randn(1, 2, 8), input_ids=ids, is_image=is_image, attention_mask=torch.ones(1, 5),
    ...      labels=torch.tensor([[-100, -100, -100, -100, 7]]))["loss"].ndim
    0

    ```
    """

    accepts_loss_kwargs = True  # the Trainer divides by the labelled tokens of all processes

    def __init__(self, llm: nn.Module, width: int):
        super().__init__()
        self.llm = llm
        self.center: torch.Tensor
        self.spread: torch.Tensor
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        plain = llm.get_base_model() if isinstance(llm, PeftModel) else llm
        self._takes_positions = "position_ids" in inspect.signature(plain.forward).parameters
        self.connector = build_connector(width, llm.get_input_embeddings().embedding_dim)  # type: ignore[operator]

    @torch.no_grad()
    def fit_scale(self, features: torch.Tensor) -> None:
        """Takes mean and standard deviation of each channel from tokens `(num_items, num_tokens, width)`.

        The connector could learn the same: it only starts alike for towers of any scale.
        """
        sample = features[:: max(1, len(features) // 256)].float().flatten(0, 1)
        spread = sample.std(dim=0)
        self.center.copy_(sample.mean(dim=0))
        self.spread.copy_(spread.masked_fill(spread < 1e-6, 1.0))

    def embed(self, features: torch.Tensor, input_ids: torch.Tensor, is_image: torch.Tensor) -> torch.Tensor:
        """Returns input embeddings with the visual tokens at the places of the image."""
        embeds = self.llm.get_input_embeddings()(input_ids)  # type: ignore[operator]
        scaled = (features.float() - self.center) / self.spread
        visual = self.connector(scaled.to(next(self.connector.parameters()).dtype)).to(embeds.dtype)
        joined: torch.Tensor = embeds.masked_scatter(is_image[..., None], visual)
        return joined

    def call_llm(self, attention_mask: torch.Tensor, **inputs: Any) -> Any:
        """Returns the output of the language model; positions are counted without the padding."""
        length = inputs["inputs_embeds" if "inputs_embeds" in inputs else "input_ids"].shape[1]
        if self._takes_positions:
            inputs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
        return self.llm(attention_mask=attention_mask, **inputs)

    def forward(
        self,
        features: torch.Tensor,
        input_ids: torch.Tensor,
        is_image: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Returns logits, and the mean loss of the labelled tokens, or their sum over `num_items_in_batch`."""
        embeds = self.embed(features, input_ids, is_image)
        output = self.call_llm(attention_mask, inputs_embeds=embeds, use_cache=False)
        if labels is None:
            return {"logits": output.logits}
        logits = output.logits[:, :-1].flatten(0, 1).float()
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED, reduction=reduction)
        return {"loss": loss / (1 if num_items_in_batch is None else num_items_in_batch), "logits": output.logits}


class Prompts:
    """Questions and answers as token ids, with room for the image.

    The prompt is the LLaVA one: `{system}USER: <image>\\n{question} ASSISTANT: {answer}` and the end token. The loss
    is on the answer and the end token only.

    Args:
        tokenizer: a tokenizer with an end token.
        num_tokens (`int`): visual tokens of an image.
        system (`str`): text before the turn.
        max_length (`int`): most tokens of question and answer.
    """

    def __init__(self, tokenizer: Any, num_tokens: int, system: str, max_length: int):
        if tokenizer.eos_token_id is None:
            raise ValueError(f"Expected a tokenizer with an end token, got {type(tokenizer).__name__} without one.")
        self.tokenizer, self.num_tokens, self.max_length = tokenizer, num_tokens, max_length
        self._before = self._ids(f"{system}USER: ")
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_reply(self, answer: str) -> list[int]:
        """Returns the ids of an answer and the end token."""
        return [*self._ids(f" {answer}"), self.tokenizer.eos_token_id]

    def encode(self, question: str, answer: str | None) -> Encoded:
        """Returns the ids of a prompt, where its image is, and labels; without an answer for generation."""
        after = self._ids(f"\n{question} ASSISTANT:")
        reply = [] if answer is None else self.encode_reply(answer)
        prompt = [*self._before, *[self.pad] * self.num_tokens, *after]
        if len(prompt) + len(reply) > self.max_length + self.num_tokens:
            raise ValueError(
                f"The question {question[:60]!r} and its answer have more than {self.max_length} tokens; raise "
                "`max_length` of the profile."
            )
        start = len(self._before)
        image = [start <= place < start + self.num_tokens for place in range(len(prompt) + len(reply))]
        return {"input_ids": prompt + reply, "is_image": image, "labels": [IGNORED] * len(prompt) + reply}

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Returns a batch, padded on the left."""
        longest = max(len(item["input_ids"]) for item in encoded)

        def pad(key: str, value: int | bool) -> torch.Tensor:
            return torch.tensor([[value] * (longest - len(item[key])) + list(item[key]) for item in encoded])

        lengths = torch.tensor([len(item["input_ids"]) for item in encoded])
        mask = torch.arange(longest)[None] >= longest - lengths[:, None]
        return {
            "input_ids": pad("input_ids", self.pad),
            "is_image": pad("is_image", False),
            "labels": pad("labels", IGNORED),
            "attention_mask": mask.long(),
        }


@torch.inference_mode()
def generate_answers(
    head: AvaHead,
    prompts: Prompts,
    features: torch.Tensor,
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
) -> list[str]:
    """Returns what the head writes, greedily, for each question about each row of tokens."""
    answers: list[str] = []
    device = next(head.parameters()).device
    for start in range(0, len(questions), batch_size):
        rows = slice(start, start + batch_size)
        batch = prompts.collate([prompts.encode(question, None) for question in questions[rows]])
        embeds = head.embed(features[rows].to(device), batch["input_ids"].to(device), batch["is_image"].to(device))
        ids = head.llm.generate(  # type: ignore[operator]
            inputs_embeds=embeds,
            attention_mask=batch["attention_mask"].to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=prompts.tokenizer.eos_token_id,
            pad_token_id=prompts.pad,
        )
        answers += [text.strip() for text in prompts.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return answers


@torch.inference_mode()
def choose_options(
    head: AvaHead,
    prompts: Prompts,
    features: torch.Tensor,
    questions: Sequence[str],
    options: Sequence[Sequence[str]],
    *,
    batch_size: int = 32,
) -> list[str]:
    """Returns the option with the largest mean log-likelihood of its tokens, the end token included.

    Image and question are computed once for all options of an item, and kept in the model's key-value cache.

    Args:
        head (`AvaHead`): connector and language model.
        prompts (`Prompts`): how questions and answers become ids.
        features (`torch.Tensor` of shape `(num_items, num_tokens, width)`): tokens of the images.
        questions (sequence of `str`): one for each item.
        options (sequence of sequences of `str`): the answers that each item allows.
        batch_size (`int`, defaults to 32): options that are computed at once.
    """
    chosen: list[str] = []
    num_rows = max(1, batch_size // max(map(len, options), default=1))
    for start in range(0, len(questions), num_rows):
        rows = slice(start, start + num_rows)
        prefix, mask = _compute_prefix(head, prompts, features[rows], questions[rows])
        pairs = [(row, option) for row, names in enumerate(options[rows]) for option in names]
        scores: list[float] = []
        for first in range(0, len(pairs), batch_size):
            scores += _score_options(head, prompts, prefix, mask, pairs[first : first + batch_size])
        best: dict[int, tuple[float, str]] = {}
        for (row, option), score in zip(pairs, scores, strict=True):
            if row not in best or score > best[row][0]:
                best[row] = (score, option)
        chosen += [best[row][1] for row in range(len(best))]
    return chosen


def _compute_prefix(
    head: AvaHead, prompts: Prompts, features: torch.Tensor, questions: Sequence[str]
) -> tuple[Any, torch.Tensor]:
    """Returns the output for image and question of each item, with its cache, and where it is no padding."""
    device = next(head.parameters()).device
    batch = prompts.collate([prompts.encode(question, None) for question in questions])
    embeds = head.embed(features.to(device), batch["input_ids"].to(device), batch["is_image"].to(device))
    mask = batch["attention_mask"].to(device)
    prefix = head.call_llm(mask, inputs_embeds=embeds, use_cache=True)
    if not hasattr(prefix.get("past_key_values"), "batch_select_indices"):
        raise ValueError(
            f"{type(head.llm).__name__} has no key-value cache to compare options with; use a profile with "
            "`closed_sets='generate'`."
        )
    return prefix, mask


def _score_options(
    head: AvaHead, prompts: Prompts, prefix: Any, mask: torch.Tensor, pairs: Sequence[tuple[int, str]]
) -> list[float]:
    """Returns the mean log-likelihood of each option after the prefix of its row."""
    rows = torch.tensor([row for row, _ in pairs], device=mask.device)
    replies = [torch.tensor(prompts.encode_reply(option)) for _, option in pairs]
    labels = nn.utils.rnn.pad_sequence(replies, batch_first=True, padding_value=IGNORED).to(mask.device)
    real = labels != IGNORED
    cache = copy.deepcopy(prefix.past_key_values)
    cache.batch_select_indices(rows)
    output = head.call_llm(
        torch.cat([mask[rows], real.long()], dim=1),
        input_ids=labels.masked_fill(~real, prompts.pad),
        past_key_values=cache,
        use_cache=True,
    )
    logits = torch.cat([prefix.logits[rows, -1:], output.logits[:, :-1]], dim=1)
    loss = nn.functional.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=IGNORED, reduction="none")
    means: list[float] = (-loss.sum(dim=1) / real.sum(dim=1)).tolist()
    return means
