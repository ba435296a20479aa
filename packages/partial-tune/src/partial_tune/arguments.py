"""The options of [`PartialTuneTrainer`]."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from transformers import TrainingArguments

from partial_tune.lolsgd import LoraAverage
from partial_tune.regularization import BatchNormPolicy

Method = Literal["finetune", "frozen_head", "lp_ft", "lolsgd"]


@dataclass
class PartialTuneArguments(TrainingArguments):
    """`TrainingArguments` with the ways to train on some of the classes.

    Args:
        method (`str`, defaults to `"finetune"`):
            `"finetune"` trains everything, `"frozen_head"` all but the head, `"lp_ft"` the head first and then
            everything (in one process), `"lolsgd"` local models that each leave out some classes, averaged in rounds.
        workers (`int`, defaults to 10): local models of LOLSGD in a round.
        rounds (`int`, defaults to 10): rounds of LOLSGD. Each worker takes all steps that fine-tuning takes, over all
            rounds.
        drop (`int`, *optional*): classes that a worker leaves out in a round. 30 percent by default.
        lora_average (`str`, defaults to `"freeze_a"`): `"freeze_a"` (exact), `"svd"` or `"naive"`.
        probe_ratio (`float`, defaults to 0.5): share of the steps in which `"lp_ft"` trains the head only.
        distill_weight (`float`, defaults to 0): weight of the selective distillation; needs `source_model`.
        distill_temperature (`float`, defaults to 1): its temperature.
        distill_warmup_ratio (`float`, defaults to 0.1): share of the steps in which its weight grows from 0.
        rank_weight (`float`, defaults to 0): weight of the feature-rank regulariser.
        bn (`str`, defaults to `"train"`):
            BatchNorm: `"train"`, `"freeze_stats"`, `"freeze_all"` (statistics and affine), `"stats_only"` (nothing
            else changes), `"affine_only"`.

    Raises:
        ValueError: for an unknown choice or a value out of range.

    Example:

    ```python
    >>> from partial_tune import PartialTuneArguments
    >>> PartialTuneArguments(output_dir="out", method="lolsgd", workers=4, report_to="none").workers
    4

    ```
    """

    method: Method = field(default="finetune", metadata={"help": "finetune, frozen_head, lp_ft or lolsgd"})
    workers: int = field(default=10, metadata={"help": "local models of LOLSGD in a round"})
    rounds: int = field(default=10, metadata={"help": "rounds of LOLSGD"})
    drop: int | None = field(default=None, metadata={"help": "classes that a worker leaves out"})
    lora_average: LoraAverage = field(default="freeze_a", metadata={"help": "freeze_a, svd or naive"})
    probe_ratio: float = field(
        default=0.5, metadata={"help": "share of the steps that train the head only, for lp_ft"}
    )
    distill_weight: float = field(default=0.0, metadata={"help": "weight of the selective distillation"})
    distill_temperature: float = field(default=1.0, metadata={"help": "temperature of the selective distillation"})
    distill_warmup_ratio: float = field(default=0.1, metadata={"help": "share of the steps until the full weight"})
    rank_weight: float = field(default=0.0, metadata={"help": "weight of the feature-rank regulariser"})
    bn: BatchNormPolicy = field(
        default="train", metadata={"help": "train, freeze_stats, freeze_all, stats_only or affine_only"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        choices = {"method": get_args(Method), "lora_average": get_args(LoraAverage), "bn": get_args(BatchNormPolicy)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"Expected `{name}` to be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        for name in ("workers", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected `{name}` to be at least 1, got {getattr(self, name)}.")
        for name in ("distill_weight", "rank_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"Expected `{name}` to be at least 0, got {getattr(self, name)}.")
        for name in ("probe_ratio", "distill_warmup_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Expected `{name}` in [0, 1], got {getattr(self, name)}.")
        if self.distill_temperature <= 0:
            raise ValueError(f"Expected a positive `distill_temperature`, got {self.distill_temperature}.")
        if self.bn == "stats_only" and (self.method != "finetune" or self.distill_weight or self.rank_weight):
            raise ValueError(
                'Expected method="finetune" without extra losses for bn="stats_only": nothing is trained.'
            )
        if self.method == "lolsgd" and self.fp16:
            raise ValueError("Expected fp32 or bf16 for LOLSGD, got fp16, whose loss scale is not averaged.")
