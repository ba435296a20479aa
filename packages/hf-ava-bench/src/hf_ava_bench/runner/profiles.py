"""How much is trained on how many items: the paper's protocol, a faster one, and one for a laptop."""

from collections.abc import Mapping
from dataclasses import dataclass

LLAVA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The training of one head for each ability.

    Args:
        name (`str`): name of the profile.
        epochs (`float`): passes over the training items; 20 for localization in the paper.
        localization_epochs (`float`): the same for localization.
        batch_size (`int`): items in one step.
        learning_rate (`float`): peak of the cosine schedule.
        warmup_ratio (`float`): share of the steps in which it rises.
        lora_r, lora_alpha (`int`): rank and scale of LoRA on every linear layer of the language model but its head.
        lora_dropout (`float`): dropout of LoRA.
        standardize (`bool`): take mean and spread of each channel of the tokens out before the connector, which could
            learn that too, in time. Not done in the paper.
        bf16 (`bool`): train in bfloat16 where that is safe (autocast); the paper trains in half precision.
        train_llm (`bool`): train all of the language model instead of LoRA; for tiny ones without pre-training.
        n_train, n_test (`int` or None): most items of each ability.
        token_budget (`int` or None): most visual tokens an image.
        system (`str`): text before the first turn.
        max_length (`int`): most tokens of question and answer.
        closed_sets (`str`): `"generate"` or `"loglik"` for abilities whose items list their options.
    """

    name: str
    epochs: float
    localization_epochs: float
    batch_size: int = 16
    learning_rate: float = 1e-4
    warmup_ratio: float = 0.03
    lora_r: int = 128
    lora_alpha: int = 256
    lora_dropout: float = 0.05
    standardize: bool = False
    bf16: bool = False
    train_llm: bool = False
    n_train: int | None = None
    n_test: int | None = None
    token_budget: int | None = None
    system: str = LLAVA_SYSTEM
    max_length: int = 2048
    closed_sets: str = "generate"


PROFILES: Mapping[str, Profile] = {
    "paper": Profile(name="paper", epochs=10, localization_epochs=20),
    "fast": Profile(
        name="fast",
        epochs=3,
        localization_epochs=3,
        lora_r=32,
        lora_alpha=64,
        n_train=3_000,
        n_test=500,
        token_budget=144,
        standardize=True,
    ),
    "smoke": Profile(
        name="smoke",
        epochs=4,
        localization_epochs=4,
        batch_size=32,
        learning_rate=2e-3,
        lora_r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        train_llm=True,
        n_train=128,
        n_test=64,
        token_budget=16,
        standardize=True,
        system="",
        max_length=256,
        closed_sets="loglik",
    ),
}
"""Name -> profile. `paper` is the third stage of the paper's protocol (LoRA and connector, one ability at a time)."""


def find_profile(profile: str | Profile) -> Profile:
    """Returns the profile of that name, or the given one.

    Example:

    ```python
    >>> from hf_ava_bench.runner.profiles import find_profile
    >>> find_profile("paper").lora_r
    128

    ```
    """
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise ValueError(f"Expected a profile ({', '.join(PROFILES)}) or a Profile, got {profile!r}.")
    return PROFILES[profile]
