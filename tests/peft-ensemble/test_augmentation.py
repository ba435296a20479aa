"""Views depend on their key alone, and operations are those of PIL where PIL has them."""

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from peft_ensemble.augmentation import OPERATIONS, augment, to_tensor

IMAGE = torch.randint(0, 256, (3, 12, 10), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def to_pil(image):
    return Image.frombytes("RGB", (image.shape[2], image.shape[1]), bytes(image.permute(1, 2, 0).flatten().tolist()))


@pytest.mark.parametrize(
    ("name", "level", "reference"),
    [
        ("autocontrast", 0.5, ImageOps.autocontrast),
        ("equalize", 0.5, ImageOps.equalize),
        ("posterize", 0.5, lambda image: ImageOps.posterize(image, 6)),
        ("solarize", 0.5, lambda image: ImageOps.solarize(image, 128)),
        ("brightness", 0.5, lambda image: ImageEnhance.Brightness(image).enhance(1.45)),
        ("color", -0.5, lambda image: ImageEnhance.Color(image).enhance(0.55)),
        ("contrast", -0.5, lambda image: ImageEnhance.Contrast(image).enhance(0.55)),
        ("sharpness", -0.5, lambda image: ImageEnhance.Sharpness(image).enhance(0.55)),
    ],
)
def test_operations_are_pil_s(name, level, reference):
    image = (IMAGE.float() * 0.6 + 40).to(torch.uint8)
    expected = to_tensor(reference(to_pil(image)))
    assert (OPERATIONS[name](image, level).int() - expected.int()).abs().max() <= 1  # PIL rounds here and there


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_moves_move_opposite_ways_and_nothing_at_zero(name):
    assert torch.equal(OPERATIONS[name](IMAGE, 0.0), IMAGE)
    one, other = OPERATIONS[name](IMAGE, 0.5), OPERATIONS[name](IMAGE, -0.5)
    assert not torch.equal(one, other)
    assert torch.equal(OPERATIONS["translate_x"](IMAGE, 1 / 3)[:, :, :-1], IMAGE[:, :, 1:])  # a tenth of ten columns


def test_rotation_of_a_quarter_would_be_torch_s():
    square = IMAGE[:, :10]
    turned = OPERATIONS["rotate"](square, 3.0)  # 90 degrees
    assert torch.equal(turned, torch.rot90(square, 1, (1, 2))) or torch.equal(turned, torch.rot90(square, -1, (1, 2)))


def test_views_depend_on_the_key_alone():
    state = torch.get_rng_state()
    first = augment(IMAGE, "strong", (0, 1, "a"))
    assert torch.equal(first, augment(IMAGE, "strong", (0, 1, "a")))
    others = [augment(IMAGE, "strong", (0, 1, name)) for name in "bcdefg"]
    assert any(not torch.equal(first, other) for other in others)
    assert torch.equal(state, torch.get_rng_state())
    assert augment(IMAGE, "none", (0,)) is IMAGE


def test_weak_view_is_the_image_or_its_mirror_half_of_the_time():
    views = [augment(IMAGE, "weak", (number,)) for number in range(200)]
    mirrored = sum(torch.equal(view, IMAGE.flip(-1)) for view in views)
    assert mirrored + sum(torch.equal(view, IMAGE) for view in views) == 200
    assert 70 < mirrored < 130


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 40)])
def test_tiny_images_survive_every_operation(size):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for operation in OPERATIONS.values():
        assert operation(image, 0.5).shape == image.shape
        assert operation(image, -0.5).dtype == torch.uint8


def test_images_of_many_kinds():
    assert torch.equal(to_tensor(to_pil(IMAGE)), IMAGE)
    assert torch.equal(to_tensor(IMAGE), IMAGE)
    assert torch.equal(to_tensor(IMAGE.permute(1, 2, 0).tolist()), IMAGE)
    grey = IMAGE[0]
    assert torch.equal(to_tensor(grey.numpy()), grey.expand(3, -1, -1))
    assert to_tensor(Image.new("L", (4, 6))).shape == (3, 6, 4)
    for wrong in (torch.rand(3, 4, 4), torch.full((3, 4, 4), 300)):
        with pytest.raises(TypeError, match="integers from 0 to 255"):
            to_tensor(wrong)
    with pytest.raises(ValueError, match="one or three channels"):
        to_tensor(torch.zeros(4, 5, 6, dtype=torch.uint8))
    with pytest.raises(ValueError, match="view must be one of none, weak, strong"):
        augment(IMAGE, "medium", ())
