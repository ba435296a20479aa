"""How tokens and maps of a layer lie on the image, by their shapes alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

MAX_HALVINGS = 6  # of the patch grid in a hierarchical model


@dataclass(frozen=True)
class Patches:
    """Size of a model's patch, height and width, where it has patches, and how many register tokens it adds."""

    size: tuple[int, int] | None
    num_registers: int = 0


@dataclass(frozen=True)
class ImageShape:
    """Size in pixels of each image of a batch, and the patches of the model.

    `is_patchified` says that the model was given patches in rows (SigLIP2), whose images may differ in size.
    """

    sizes: tuple[tuple[int, int], ...]
    patches: Patches
    is_patchified: bool = False

    def grids(self) -> Iterator[tuple[int, int]]:
        """Yields the patch grid of the first image and what is left of it after each halving, rounded up.

        Whole patches first; then the patches of an image that the model pads until they are whole (Swin).
        """
        if self.patches.size is None:
            return
        (height, width), (patch_height, patch_width) = self.sizes[0], self.patches.size
        whole = (height // patch_height, width // patch_width)
        padded = (-(-height // patch_height), -(-width // patch_width))
        for rows, columns in dict.fromkeys((whole, padded)):
            for _ in range(MAX_HALVINGS):
                yield rows, columns
                rows, columns = -(-rows // 2), -(-columns // 2)


def read_image_shape(patches: Patches, pixel_values: Tensor, kwargs: dict[str, Any]) -> ImageShape:
    """Returns the sizes of the images of a call: from the pixels, or from `spatial_shapes` of patchified images.

    Raises:
        ValueError: if `pixel_values` is neither.
    """
    if pixel_values.ndim == 4:
        size = (pixel_values.shape[2], pixel_values.shape[3])
        return ImageShape((size,) * len(pixel_values), patches)
    if pixel_values.ndim == 3 and "spatial_shapes" in kwargs and patches.size is not None:
        patch_height, patch_width = patches.size
        shapes = kwargs["spatial_shapes"].tolist()
        return ImageShape(tuple((h * patch_height, w * patch_width) for h, w in shapes), patches, is_patchified=True)
    raise ValueError(
        "`pixel_values` must have the shape (batch_size, num_channels, height, width), or be patches of the shape "
        f"(batch_size, num_patches, patch_dim) together with `spatial_shapes`, got {tuple(pixel_values.shape)}."
    )


@dataclass(frozen=True)
class Layout:
    """How a layer's output becomes `(B, D, h, w)`: its kind, the grid of each image, and leading tokens to drop."""

    kind: str  # "nchw", "nhwc" or "tokens"
    grids: tuple[tuple[int, int], ...]
    num_prefix: int = 0

    @property
    def is_ragged(self) -> bool:
        """Whether images have grids of different sizes."""
        return len(set(self.grids)) > 1

    def to_grid(self, output: Tensor) -> Tensor:
        """Returns the output or its gradient as `(B, D, h, w)`; smaller grids are padded with zeros."""
        if self.kind == "nchw":
            return output
        if self.kind == "nhwc":
            return output.permute(0, 3, 1, 2)
        height, width = self.grids[0]
        if not self.is_ragged:
            tokens = output[:, self.num_prefix : self.num_prefix + height * width]
            return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)
        tallest, widest = max(h for h, _ in self.grids), max(w for _, w in self.grids)
        padded = output.new_zeros(len(output), output.shape[2], tallest, widest)
        for row, (height, width) in enumerate(self.grids):
            padded[row, :, :height, :width] = output[row, : height * width].T.unflatten(1, (height, width))
        return padded


def find_layout(output: Tensor, shape: ImageShape) -> Layout:
    """Returns the layout of a layer's output, by its shape against the patch grid.

    Raises:
        ValueError: if it is no map of the image.
    """
    batch_size = output.shape[0]
    grids = list(shape.grids())
    if output.ndim == 4:
        first, last = (output.shape[1], output.shape[2]), (output.shape[2], output.shape[3])
        is_nhwc = first in grids and last not in grids
        return Layout("nhwc" if is_nhwc else "nchw", ((first if is_nhwc else last),) * batch_size)
    if output.ndim != 3:
        raise ValueError(
            "the target layer must give maps (batch_size, channels, height, width) or tokens (batch_size, num_tokens, "
            f"channels), got an output of shape {tuple(output.shape)}; choose another `target_layer`."
        )
    if not grids:
        raise ValueError(
            f"the target layer gives {output.shape[1]} tokens, but the model has no patch size (no convolution whose "
            "stride is its kernel, no `config.patch_size`); choose a `target_layer` that gives (B, D, h, w) maps."
        )
    num_tokens, most = output.shape[1], 2 + shape.patches.num_registers
    if shape.patches.size is not None and shape.is_patchified:
        patch_height, patch_width = shape.patches.size
        return Layout("tokens", tuple((h // patch_height, w // patch_width) for h, w in shape.sizes))
    for height, width in grids:
        num_prefix = num_tokens - height * width
        if num_prefix == 0 or ((height, width) == grids[0] and 0 < num_prefix <= most):
            return Layout("tokens", ((height, width),) * batch_size, num_prefix)
    height, width = grids[0]
    raise ValueError(
        f"expected {height} x {width} patch tokens (image {shape.sizes[0][0]} x {shape.sizes[0][1]}, patch "
        f"{shape.patches.size}) after at most {most} leading tokens, got {num_tokens} tokens, which "
        f"leaves {num_tokens - height * width}; choose a `target_layer` with one token for each patch."
    )
