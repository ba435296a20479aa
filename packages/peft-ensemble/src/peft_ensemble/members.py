"""What a member of an ensemble is: a backbone, a PEFT method, a seed and training options."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any, get_args

from peft import PeftConfig
from transformers import TrainingArguments

from .augmentation import View
from .modeling_classifier import Pooling

_TRAINING_FIELDS = {item.name for item in fields(TrainingArguments)} - {"output_dir", "seed", "data_seed"}


@dataclass(frozen=True, kw_only=True)
class MemberSpec:
    """One member: what it is made of and how it is trained.

    Args:
        backbone: a local folder or a Hub id.
        method: a config of peft or of this package.
        training: values for `TrainingArguments` that differ from the ensemble's.
        augmentation: the view of the labelled images: `"none"`, `"weak"` or `"strong"`.
        drop_path: rate at which the last block drops its branches in training, in [0, 1); see `add_drop_path`. Blocks
            before the first adapter drop nothing.
        pooling: the head, see `load_classifier`.
        seed: of the weights, the order of the images and their views.
        group: members of one group are candidates, of which one is selected. By default each is a group of its own.

    Example:

    ```python
    >>> from peft_ensemble import SSFConfig
    >>> grid = MemberSpec.grid(["a", "b"], [SSFConfig()], search={"learning_rate": [1e-3, 1e-4]}, seeds=[0])
    >>> len(grid), len({spec.group for spec in grid}), grid[0].training
    (4, 2, {'learning_rate': 0.001})

    ```
    """

    backbone: str
    method: PeftConfig
    training: Mapping[str, Any] = field(default_factory=dict)
    augmentation: View = "weak"
    drop_path: float = 0.0
    pooling: Pooling = "native"
    seed: int = 0
    group: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.method, PeftConfig):
            raise TypeError(f"method must be a config of peft or of this package, got {type(self.method).__name__}")
        if unknown := sorted(set(self.training) - _TRAINING_FIELDS):
            raise ValueError(f"training takes fields of TrainingArguments other than folders and seeds, got {unknown}")
        if self.augmentation not in get_args(View):
            raise ValueError(f"augmentation must be one of {', '.join(get_args(View))}, got {self.augmentation!r}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {self.pooling!r}")
        if not self.group:
            object.__setattr__(self, "group", self.id)

    @property
    def method_name(self) -> str:
        """The method's name, such as `ssf` or `lora`."""
        return str(self.method.peft_type.value).lower().removeprefix("vis_")  # type: ignore[union-attr]

    @property
    def id(self) -> str:
        """A name from the backbone, the method and a hash of everything: the same for the same spec."""
        content = json.dumps({**self.to_dict(), "group": None}, sort_keys=True)
        return f"{Path(self.backbone).name}-{self.method_name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        config = self.method.to_dict()
        config.pop("peft_version", None)  # a new version of peft is no new member
        method = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        return {
            "backbone": self.backbone,
            "method": json.loads(json.dumps(method, default=str, sort_keys=True)),
            "training": dict(self.training),
            "augmentation": self.augmentation,
            "drop_path": self.drop_path,
            "pooling": self.pooling,
            "seed": self.seed,
            "group": self.group,
        }

    @classmethod
    def grid(
        cls,
        backbones: Sequence[str],
        methods: Sequence[PeftConfig],
        search: Mapping[str, Sequence[Any]] | None = None,
        seeds: Sequence[int] = (0,),
        pooling: Pooling = "native",
    ) -> list["MemberSpec"]:
        """Every combination, in the order of the arguments; one group for each backbone, method and seed.

        Args:
            backbones, methods, seeds: what the members are.
            search: candidates of each: fields of `TrainingArguments` (`learning_rate`, `weight_decay`, ...), of the
                method (`bottleneck`, `r`, ...), `augmentation` or `drop_path`.
            pooling: of all members.

        Raises:
            ValueError: nothing to combine, or a name in `search` that no one knows.
        """
        search = dict(search or {})
        if not backbones or not methods or not seeds or not all(search.values()):
            raise ValueError("expected at least one backbone, method and seed, and a value for each name in search")
        specs = []
        for backbone, (number, method), seed in product(backbones, enumerate(methods), seeds):
            for values in product(*search.values()):
                chosen = dict(zip(search, values, strict=True))
                member = {key: chosen.pop(key) for key in ("augmentation", "drop_path") if key in chosen}
                own = {key: chosen.pop(key) for key in list(chosen) if hasattr(method, key)}
                config = copy.deepcopy(method)
                for key, value in own.items():
                    setattr(config, key, value)
                config.__post_init__()  # type: ignore[no-untyped-call]
                spec = cls(
                    backbone=backbone,
                    method=config,
                    training=chosen,
                    **member,
                    pooling=pooling,
                    seed=seed,
                    group=f"{backbone} {number} {seed}",
                )
                specs.append(spec)
        return specs
