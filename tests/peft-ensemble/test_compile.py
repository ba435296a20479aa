"""Adapters go through torch.compile's tracing; the kernels of a backend are torch's own business."""

import pytest
import torch
from peft import get_peft_model

from support.tiny_adapters import METHODS


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_compiled_model_gives_the_same_logits(build_model, pixel_values, method):
    model = get_peft_model(build_model("vit"), METHODS[method]()).eval()
    with torch.no_grad():
        expected = model(pixel_values=pixel_values).logits
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(pixel_values=pixel_values).logits, expected)
