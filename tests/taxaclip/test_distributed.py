import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load_file, save_file

from taxaclip import (
    cached_backward,
    chunked_contrastive_loss,
    contrastive_loss,
    distributed,
    distributed_contrastive_loss,
)
from taxaclip.distributed import _gather

ROWS, WORLD = 6, 2
DTYPES = {"fp64": torch.double, "fp32": torch.float}


def make_towers(dtype: torch.dtype = torch.double) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Parameter]:
    torch.manual_seed(0)
    image, text = (
        torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.GELU(), torch.nn.Linear(8, 4)) for _ in range(2)
    )
    return image.to(dtype), text.to(dtype), torch.nn.Parameter(torch.tensor(2.0, dtype=dtype))


def make_batch(dtype: torch.dtype = torch.double) -> torch.Tensor:
    return torch.randn(2, ROWS * WORLD, 5, generator=torch.Generator().manual_seed(1), dtype=dtype)


def gradients(*modules: torch.nn.Module | torch.nn.Parameter) -> dict[str, torch.Tensor]:
    found = {}
    for number, module in enumerate(modules):
        named = [("", module)] if isinstance(module, torch.nn.Parameter) else module.named_parameters()
        found |= {f"{number}.{name}": parameter.grad.clone() for name, parameter in named}
    return found


def whole_batch(dtype: torch.dtype = torch.double) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    image, text, scale = make_towers(dtype)
    images, texts = make_batch(dtype)
    loss = contrastive_loss(image(images), text(texts), scale)
    loss.backward()
    return loss.detach(), gradients(image, text, scale)


def worker(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    for name, dtype in DTYPES.items():
        image, text, scale = make_towers(dtype)
        images, texts = make_batch(dtype)[:, rank * ROWS : (rank + 1) * ROWS]
        loss = distributed_contrastive_loss(image(images), text(texts), scale)
        loss.backward()
        grads = gradients(image, text, scale)
        for tensor in (loss.detach_(), *grads.values()):  # what DistributedDataParallel does
            dist.all_reduce(tensor)
            tensor /= WORLD
        save_file({"loss": loss, **grads}, Path(folder) / f"{name}-{rank}.safetensors")
    distributed._gather = lambda rows: _gather(rows).detach()  # a gather without gradients, as of accelerate
    image, text, scale = make_towers()
    images, texts = make_batch()[:, rank * ROWS : (rank + 1) * ROWS]
    distributed_contrastive_loss(image(images), text(texts), scale).backward()
    grads = gradients(image, text, scale)
    for tensor in grads.values():
        dist.all_reduce(tensor)
        tensor /= WORLD
    save_file(grads, Path(folder) / f"detached-{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.loopback
def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(worker, (str(tmp_path),), nprocs=WORLD, start_method="spawn")
    for name, dtype in DTYPES.items():
        loss, grads = whole_batch(dtype)
        for rank in range(WORLD):
            found = load_file(tmp_path / f"{name}-{rank}.safetensors")
            assert found.keys() == {"loss", *grads}
            for key, expected in {"loss": loss, **grads}.items():
                error = (found[key] - expected).abs().max() / expected.abs().max()
                assert error <= {"fp64": 1e-12, "fp32": 1e-6}[name], (name, key)
    detached, grads = load_file(tmp_path / "detached-0.safetensors"), whole_batch()[1]
    wrong = {key for key in grads if (detached[key] - grads[key]).abs().max() > 0.01 * grads[key].abs().max()}
    assert wrong == grads.keys() - {"2."}  # all but the scale's: this test sees what a gather must carry back


@pytest.mark.parametrize("sizes", [[12], [5, 4, 3], [1] * 12])
@pytest.mark.parametrize("loss", [contrastive_loss, chunked_contrastive_loss])
def test_micro_batches_have_the_gradients_of_the_whole(sizes: list[int], loss: object) -> None:
    image, text, scale = make_towers()
    images, texts = make_batch()
    parts = list(zip(images.split(sizes), texts.split(sizes), strict=True))
    value = cached_backward(lambda part: (image(part[0]), text(part[1])), parts, lambda i, t: loss(i, t, scale))  # type: ignore[operator]
    expected, grads = whole_batch()
    torch.testing.assert_close(value, expected)
    for name, grad in gradients(image, text, scale).items():
        torch.testing.assert_close(grad, grads[name], rtol=0, atol=1e-12, msg=name)


def test_second_pass_draws_what_the_first_drew() -> None:
    image, text, scale = make_towers()
    drop = torch.nn.Dropout(0.5)
    parts = list(make_batch().split(4, dim=1))

    def embed(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image(drop(part[0])), text(part[1])

    torch.manual_seed(5)
    cached_backward(embed, parts, lambda i, t: contrastive_loss(i, t, scale))
    found, state = gradients(image, text, scale), torch.get_rng_state()
    image.zero_grad(), text.zero_grad()
    scale.grad = None
    torch.manual_seed(5)
    embeds = [torch.cat(column) for column in zip(*(embed(part) for part in parts), strict=True)]
    contrastive_loss(*embeds, scale).backward()
    for name, grad in gradients(image, text, scale).items():
        torch.testing.assert_close(found[name], grad, rtol=0, atol=1e-12, msg=name)
    assert torch.equal(state, torch.get_rng_state())


def test_no_micro_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        cached_backward(lambda x: (x, x), [], lambda i, t: i.sum())
