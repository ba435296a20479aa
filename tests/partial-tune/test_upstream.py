"""What transformers, peft, accelerate and torch do that this package relies on."""

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from transformers import Trainer, ViTConfig

from partial_tune.running import build_eval_loader, evaluating, split_batch
from partial_tune.upstream import (
    change_logits,
    find_head,
    get_base_model,
    get_logits,
    is_sharded,
    move_to,
    read_id2label,
)
from support.partial_models import Family, build_lora_vit, build_vit


def test_head_is_found_outside_of_the_backbone(family: Family) -> None:
    head = find_head(family.model, 6)
    assert head.out_features == 6
    assert (head.bias is not None) == family.has_bias
    with pytest.raises(ValueError, match=r"7 outputs as the head of .*, found none; use `attach`"):
        find_head(family.model, 7)


def test_a_backbone_layer_as_wide_as_the_head_is_no_head() -> None:
    model = build_vit(id2label={index: str(index) for index in range(16)}, label2id=None)  # hidden_size is 16 too
    assert find_head(model, 16) is model.classifier


def test_two_heads_are_refused() -> None:
    model = nn.ModuleDict({"one": nn.Linear(2, 6), "two": nn.Linear(2, 6)})
    with pytest.raises(ValueError, match="found one, two"):
        find_head(model, 6)


def test_low_rank_factors_of_an_adapted_head_are_no_heads() -> None:
    model = build_lora_vit(target_modules=["q_proj", "classifier"], modules_to_save=None)
    head = find_head(model, 6)
    assert isinstance(head, nn.Linear)
    assert head.bias is not None


def test_wrappers_are_taken_off() -> None:
    model = build_lora_vit()
    inner = model.get_base_model()
    assert get_base_model(model) is inner
    assert get_base_model(nn.DataParallel(model)) is inner
    own = nn.Linear(2, 2)
    own.module = nn.Linear(2, 2)  # a name that a model of one's own may have
    assert get_base_model(own) is own
    assert read_id2label(model) == inner.config.id2label
    assert read_id2label(nn.Linear(2, 2)) is None


def test_configs_keep_keys_that_they_do_not_know() -> None:
    config = ViTConfig()
    config.logit_calibration = {"gamma": 1.5, "folded": True}
    assert ViTConfig.from_dict(config.to_dict()).logit_calibration == {"gamma": 1.5, "folded": True}


def test_outputs_without_logits_are_refused() -> None:
    for output in ({"loss": torch.zeros(())}, (None,), "text"):
        with pytest.raises(TypeError, match="logits"):
            get_logits(output)
    with pytest.raises(TypeError, match="logits"):
        change_logits([torch.zeros(1)], lambda logits, dim: logits, nn.Identity(), (), {})


METHODS = ("_clip_grad_norm", "_finalize_training", "_get_collator_with_removed_columns", "_init_training_state")
METHODS += ("_maybe_log_save_evaluate", "_remove_unused_columns", "compute_loss_context_manager")
METHODS += ("create_optimizer_and_scheduler",)
ATTRIBUTES = ("_created_lr_scheduler", "_globalstep_last_logged", "_initial_global_step", "_total_loss_scalar")
ATTRIBUTES += ("_tr_loss", "callback_handler", "compute_loss_func", "current_gradient_accumulation_steps")
ATTRIBUTES += ("is_deepspeed_enabled", "is_fsdp_enabled", "model_accepts_loss_kwargs", "optimizer_cls_and_kwargs")


@pytest.mark.parametrize("name", [*METHODS, *ATTRIBUTES])
def test_trainer_has_what_ours_uses_of_it(name: str) -> None:
    assert hasattr(Trainer, name) if name in METHODS else f"self.{name} " in inspect.getsource(Trainer)


def test_modules_keep_their_hooks_where_detach_looks_for_them() -> None:
    model = nn.Linear(2, 2)
    handle = model.register_forward_hook(lambda *args: None, with_kwargs=True)
    assert list(model._forward_hooks) == list(model._forward_hooks_with_kwargs) == [handle.id]


def test_sharding_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    assert not is_sharded()
    for kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        monkeypatch.setitem(PartialState._shared_state, "distributed_type", kind)
        assert is_sharded()


def test_trainer_hands_its_loop_these_arguments() -> None:
    names = list(inspect.signature(Trainer._inner_training_loop).parameters)
    assert names == ["self", "batch_size", "args", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"]


def test_loaders_are_read_in_order_unless_they_have_a_sampler_of_their_own() -> None:
    data = list(range(10))
    shuffled = DataLoader(data, batch_size=4, shuffle=True, drop_last=True)  # type: ignore[arg-type]
    assert torch.cat(list(build_eval_loader(shuffled))).tolist() == data
    accelerated: Any = pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(shuffled)
    assert torch.cat(list(build_eval_loader(accelerated))).tolist() == data
    own = DataLoader(data, sampler=torch.utils.data.SubsetRandomSampler([1, 2]))  # type: ignore[arg-type]
    assert build_eval_loader(own) is own
    sampled = DataLoader(data, sampler=RandomSampler(data, num_samples=3))  # type: ignore[arg-type]
    assert len(list(build_eval_loader(sampled))) == 10
    batches = [torch.zeros(2, 3)]
    assert build_eval_loader(batches) is batches


def test_evaluation_mode_is_undone_module_by_module_also_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()
    modes = []
    with pytest.raises(ZeroDivisionError), evaluating(model):
        modes.append(model[0].training or 1 / 0)
    assert modes == []
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


def test_batches_of_several_kinds() -> None:
    x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    assert split_batch({"pixel_values": x, "labels": y}) == ((), {"pixel_values": x}, y)
    assert split_batch((x, y)) == ((x,), {}, y)
    assert split_batch(({"pixel_values": x}, y)) == ((), {"pixel_values": x}, y)
    assert split_batch(x) == ((x,), {}, None)
    with pytest.raises(TypeError, match="mappings or"):
        split_batch("text")
    moved = move_to({"a": [x, "text"]}, torch.device("meta"))
    assert (moved["a"][0].device.type, moved["a"][1]) == ("meta", "text")
