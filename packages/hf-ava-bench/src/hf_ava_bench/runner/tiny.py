"""A character-level Llama without pre-training: the head of smoke runs and tests, made in memory."""

import string
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<unk>", "</s>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token for each printable ASCII character and the line break.

    Example:

    ```python
    >>> from hf_ava_bench.runner.tiny import build_tokenizer
    >>> build_tokenizer().tokenize("[12, 3]")
    ['[', '1', '2', ',', ' ', '3', ']']

    ```
    """
    characters = [c for c in string.printable if c not in "\t\r\x0b\x0c"]
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *characters))}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    plain.decoder = decoders.Fuse()
    options: dict[str, Any] = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    options |= {"padding_side": "left", "clean_up_tokenization_spaces": False, "model_max_length": 2_048}
    return PreTrainedTokenizerFast(tokenizer_object=plain, **options)


def build_tiny_llm(
    hidden_size: int = 96, num_layers: int = 3, *, seed: int = 0
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Returns an untrained Llama of about 0.3M parameters and a tokenizer with one token for each ASCII character.

    It knows nothing: use a profile with `train_llm`.

    Example:

    ```python
    >>> from hf_ava_bench.runner.tiny import build_tiny_llm
    >>> model, tokenizer = build_tiny_llm(32, 1)
    >>> tokenizer.decode(tokenizer("[12, 3]")["input_ids"])
    '[12, 3]'

    ```
    """
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=hidden_size * 8 // 3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    torch.set_rng_state(state)
    return model, tokenizer
