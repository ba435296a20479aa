"""From a vision model and a language model to a fingerprint. Needs the extra `runner`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_ava_bench.fingerprint import Fingerprint


def run_benchmark(
    vfm: Any,
    llm: Any,
    out: str | Path,
    abilities: str | Sequence[str] = "all",
    *,
    source: str = "hub",
    profile: Any = "paper",
    seed: int = 0,
    controls: Sequence[str] = ("blind", "shuffled"),
    progress: bool = True,
    **data: Any,
) -> Fingerprint:
    """Returns the fingerprint of a vision model: a head is trained and tested for each ability on frozen tokens.

    The protocol is the third stage of the paper's: the tower is frozen, a connector (linear, GELU, linear) and LoRA on
    the language model are trained on each ability's own items, answers are generated greedily and scored by
    [`compute_score`]. Stages one and two, which make a language model read visual tokens at all, are not part of this:
    pass a language model that went through them, or train longer.

    Tokens of images are kept in `out/../tokens` and shared by all runs there; each finished ability is a file in
    `out/abilities`, so that the same call goes on where it stopped. Heads are kept in `out/heads`.

    Started by `accelerate launch` or `torchrun`, processes share each batch and the test items, and return the same.

    Args:
        vfm (`str`, `transformers.PreTrainedModel` or an object with `name`, `key` and `encode`):
            A model id or folder, a vision model, or a `hf_ava_bench.runner.towers.Tower`.
        llm (`str` or `(model, tokenizer)`):
            A model id or folder, a causal language model with its tokenizer, or `"tiny"`, an untrained one in memory.
        out (`str` or `Path`): folder of the run.
        abilities (`str` or sequence of `str`, defaults to `"all"`): what to measure.
        source (`str`, defaults to `"hub"`): as in [`load_ability`].
        profile (`str` or `Profile`, defaults to `"paper"`): `"paper"`, `"fast"`, `"smoke"`, or one of your own.
        seed (`int`, defaults to 0): seed of new weights and of the order of items.
        controls (sequence of `str`, defaults to `("blind", "shuffled")`):
            `"blind"`, a head trained on zeros, and `"shuffled"`, other images' tokens: both should be worth nothing.
            `"random"`, a head on the same architecture with new weights: what is learnt should be worth more.
            `"oracle"`, a head on tokens that spell the answer: 1 unless the head or its training is what fails.
            All but `"shuffled"` train a head for each ability.
        progress (`bool`, defaults to `True`): whether to show bars.
        **data: passed to [`load_ability`], e.g. `image_size` or `holdout`.

    Returns:
        `Fingerprint`, which is also in `out/fingerprint.json`.

    Raises:
        ImportError: without the extra `runner`.
        ValueError: for unknown names, or a tower whose tokens do not add up.

    Example:

    ```python
    >>> from transformers import ViTConfig, ViTModel
    >>> from hf_ava_bench import run_benchmark
    >>> config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    ...                    image_size=32, patch_size=8)
    >>> from hf_ava_bench.runner.profiles import Profile
    >>> profile = Profile(name="doc", epochs=1, localization_epochs=1, train_llm=True, n_train=16, n_test=8, system="",
    ...                   closed_sets="loglik")
    >>> fingerprint = run_benchmark(ViTModel(config, add_pooling_layer=False), "tiny", "runs/vit", ["scene"],
    ...                             source="mini", profile=profile, progress=False, image_size=32)
    >>> 0 <= fingerprint.abilities["scene"].score <= 1, fingerprint.num_tokens
    (True, 16)

    ```
    """
    try:
        from hf_ava_bench.runner.run import run
    except ImportError as error:
        raise ImportError('Running models needs the extra runner: pip install "hf-ava-bench[runner]"') from error
    return run(
        vfm,
        llm,
        abilities,
        out,
        source=source,
        profile=profile,
        seed=seed,
        controls=controls,
        progress=progress,
        **data,
    )
