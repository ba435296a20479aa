"""Where the parts of a vision transformer are, found by their shape and order rather than by their names.

The one place that reads the insides of a transformers model. Names differ between families and change between releases
(`attention.query` became `attention.q_proj` in transformers 5); what a pre-LN block is made of does not.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

# Parameters of the embeddings that are tokens in front of the patches; all of them have one row for each token.
PREFIX_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
# The native heads of these families read the last block directly: the final norm feeds an unused pooled output.
HEADS_BEFORE_FINAL_NORM = ("CLIPForImageClassification",)


@dataclass(frozen=True)
class Block:
    """The module names of one pre-LN block: x1 = x + attention(ln1(x)), then x1 + mlp(ln2(x1))."""

    block: str
    ln1: str
    ln2: str
    attention: str
    mlp: str
    q: str
    k: str
    v: str
    o: str
    fc1: tuple[str, ...]  # two in a gated MLP
    fc2: str

    @property
    def linears(self) -> tuple[str, ...]:
        """q, k, v, o, fc1 and fc2."""
        return (self.q, self.k, self.v, self.o, *self.fc1, self.fc2)

    @property
    def norms(self) -> tuple[str, str]:
        """ln1 and ln2."""
        return (self.ln1, self.ln2)


@dataclass(frozen=True)
class VisionStructure:
    """The module names of a vision transformer, and the layout of its tokens.

    Args:
        blocks: its blocks, first to last.
        patch_embedding: the convolution that makes the patch tokens.
        pre_norm: the norm before the first block (CLIP has one).
        final_norm: the norm after the last block, if the output depends on it.
        head: the classifier, None for a headless model.
        hidden_size: width of the tokens.
        num_prefix_tokens: tokens in front of the patches: CLS, distillation, registers.
        grid: rows and columns of patches at the configured image size.

    Example:

    ```python
    >>> from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel
    >>> config = Dinov2WithRegistersConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=28)
    >>> find_structure(Dinov2WithRegistersModel(config)).num_prefix_tokens  # class token and four registers
    5

    ```
    """

    blocks: tuple[Block, ...] = field(repr=False)
    patch_embedding: str
    pre_norm: str | None
    final_norm: str | None
    head: str | None
    hidden_size: int
    num_prefix_tokens: int
    grid: tuple[int, int]

    def outer_norms(self) -> tuple[str, ...]:
        """The norms outside the blocks."""
        return tuple(name for name in (self.pre_norm, self.final_norm) if name)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside adapter layers."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a LayerNorm or an RMSNorm."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")


def find_structure(model: nn.Module) -> VisionStructure:
    """The structure of a vision transformer of transformers, with or without adapters.

    Args:
        model: a classifier or a headless model with one stack of pre-LN blocks: ViT, DeiT, DINOv2 (with or without
            registers), DINOv3, CLIP, SigLIP and what is built like them.

    Raises:
        ValueError: no such stack, or more than one.

    Example:

    ```python
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> structure = find_structure(ViTForImageClassification(config))
    >>> structure.blocks[1].o, structure.head, structure.num_prefix_tokens, structure.grid
    ('vit.layers.1.attention.o_proj', 'classifier', 1, (4, 4))

    ```
    """
    named = {name: module for name, module in _outside_adapters(model) if not name.endswith("base_layer")}
    stacks = [(name, blocks) for name, module in named.items() if (blocks := _read_stack(name, module))]
    if len(stacks) != 1:
        raise ValueError(
            f"expected a model with one stack of pre-LN transformer blocks, found {len(stacks)} in "
            f"{type(model).__name__}; use a vision tower or classifier such as ViT, DINOv2, CLIP or SigLIP"
        )
    stack, blocks = stacks[0]
    names = list(named)
    inside = range(names.index(stack), names.index(stack) + sum(name.startswith(f"{stack}.") for name in names) + 1)
    before, after = names[: inside.start], names[inside.stop :]
    patch = [name for name in before if isinstance(unwrap(named[name]), nn.Conv2d)]
    if len(patch) != 1:
        raise ValueError(
            f"expected one convolution before the blocks of {type(model).__name__}, the patch embedding, found {patch}"
        )
    convolution = unwrap(named[patch[0]])
    norms_after = [name for name in after if is_norm(unwrap(named[name]))]
    if type(model).__name__ in HEADS_BEFORE_FINAL_NORM:
        norms_after = []
    head = _find_head(model, named)
    return VisionStructure(
        blocks=blocks,
        patch_embedding=patch[0],
        pre_norm=next((name for name in before if is_norm(unwrap(named[name]))), None),
        final_norm=norms_after[0] if norms_after else None,
        head=head,
        hidden_size=convolution.out_channels,  # type: ignore[arg-type]
        num_prefix_tokens=_count_prefix_tokens(model),
        grid=_read_grid(model),
    )


def _outside_adapters(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Like `named_modules`, but of an adapter layer only what it wraps."""
    yield prefix, module
    wraps = hasattr(module, "base_layer")
    for name, child in module.named_children():
        if not wraps or name == "base_layer":
            yield from _outside_adapters(child, f"{prefix}.{name}" if prefix else name)


def _read_stack(name: str, module: nn.Module) -> tuple[Block, ...] | None:
    """The blocks in a ModuleList, or None if one of its modules is none."""
    if not isinstance(module, nn.ModuleList) or not len(module):
        return None
    blocks = [_read_block(f"{name}.{number}", child) for number, child in enumerate(module)]
    return None if None in blocks else tuple(block for block in blocks if block)


def _read_block(name: str, module: nn.Module) -> Block | None:
    """The parts of a block: two norms, then by their linear layers the attention (four) and the MLP (two or three)."""
    path = name
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        path, module = f"{path}.base_layer", inner
    norms, linears = [], {}
    for child_name, child in module.named_children():
        if is_norm(unwrap(child)):
            norms.append(f"{path}.{child_name}")
            continue
        found = [key for key, part in _outside_adapters(child) if isinstance(unwrap(part), nn.Linear)]
        found = [key for key in found if not key.endswith(".base_layer") and key != "base_layer"]
        if found:
            linears[f"{path}.{child_name}"] = [f"{path}.{child_name}.{key}" for key in found]
    attention = [key for key, found in linears.items() if len(found) == 4]
    mlp = [key for key, found in linears.items() if len(found) in (2, 3)]
    if len(norms) != 2 or len(attention) != 1 or len(mlp) != 1:
        return None
    roles = {_attention_role(key): key for key in linears[attention[0]]}
    if set(roles) != {"q", "k", "v", "o"}:
        return None
    *fc1, fc2 = linears[mlp[0]]
    return Block(
        block=name, ln1=norms[0], ln2=norms[1], attention=attention[0], mlp=mlp[0], fc1=tuple(fc1), fc2=fc2, **roles
    )


def _attention_role(name: str) -> str:
    """q, k or v by the first letter of the last name that is no number or generic name; o for the rest."""
    first = name.rpartition(".")[2][0]
    return first if first in "qkv" else "o"


def _find_head(model: nn.Module, named: dict[str, nn.Module]) -> str | None:
    """The classifier of an image classification model of transformers, wrapped for training or not."""
    head = named.get("classifier")
    if head is None or isinstance(head, nn.Identity):
        return None
    return "classifier"


def _count_prefix_tokens(model: nn.Module) -> int:
    """How many tokens stand before the patches."""
    count = 0
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in PREFIX_TOKENS:
            count += parameter.shape[-2] if parameter.dim() > 1 else 1
    return count


def _read_grid(model: nn.Module) -> tuple[int, int]:
    """Rows and columns of patches at the configured image size."""
    config: Any = model.config
    config = getattr(config, "vision_config", config)
    height, width = _pair(config.image_size)
    patch_height, patch_width = _pair(config.patch_size)
    return height // patch_height, width // patch_width


def _pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
