"""Extra losses and BatchNorm policies of "Holistic Transfer" (arXiv 2311.01420), and effective rank."""

from typing import Literal

import torch
from torch import Tensor, nn

BatchNormPolicy = Literal["train", "freeze_stats", "freeze_all", "stats_only", "affine_only"]
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


def distillation_loss(logits: Tensor, teacher_logits: Tensor, absent_mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns how far the relations among absent classes are from those of the source model.

    The Kullback-Leibler divergence from the teacher's to the student's softmax over the absent classes only, mean over
    the batch, in nats: it does not say that a sample is of no absent class. Normalisation and weight in the paper are
    not verified.

    Args:
        logits, teacher_logits (`torch.Tensor` of shape `(batch_size, C)`): the teacher's without gradient.
        absent_mask (`torch.Tensor` of shape `(C,)`): boolean.
        temperature (`float`, defaults to 1): divides both logits.
    """
    student = (logits[:, absent_mask].float() / temperature).log_softmax(dim=1)
    teacher = (teacher_logits[:, absent_mask].float() / temperature).log_softmax(dim=1)
    return nn.functional.kl_div(student, teacher, log_target=True, reduction="batchmean")


def rank_loss(features: Tensor) -> Tensor:
    """Returns the mean squared correlation of feature dimensions over a batch, in [0, 1]: low if no dimension repeats.

    ||Corr(Z)||_F^2 / d^2, as FedDecorr. Form and weight in the paper are not verified.

    Args:
        features (`torch.Tensor` of shape `(batch_size, d)`): a batch of at least two.

    Raises:
        ValueError: for a batch of one sample.
    """
    if len(features) < 2:
        raise ValueError("Expected a batch of at least two samples for the rank regulariser, got one.")
    centred = features.float() - features.float().mean(dim=0)
    normed = nn.functional.normalize(centred, dim=0)
    # ||Z^T Z||_F = ||Z Z^T||_F: the smaller of the two products
    gram = normed @ normed.T if len(features) < features.shape[1] else normed.T @ normed
    return gram.square().sum() / features.shape[1] ** 2


def effective_rank(features: Tensor) -> float:
    """Returns the exponential of the entropy of the normalised singular values, from 1 to the number of dimensions.

    Args:
        features (`torch.Tensor` of shape `(N, d)`): not centred.
    """
    values = torch.linalg.svdvals(features.double())
    share = values / values.sum()
    share = share[share > 0]
    return float((-(share * share.log()).sum()).exp())


def freeze_for_batch_norm_policy(model: nn.Module, policy: BatchNormPolicy) -> None:
    """Sets which parameters train under a policy. Statistics are the business of [`set_batch_norm_mode`].

    Raises:
        ValueError: if the model has no BatchNorm and the policy is not `"train"`.
    """
    if policy == "train":
        return
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    if not norms:
        raise ValueError(f'Expected a model with BatchNorm for bn={policy!r}, got none; use bn="train".')
    affine = {id(parameter) for module in norms for parameter in module.parameters(recurse=False)}
    for parameter in model.parameters():
        if policy == "affine_only":
            parameter.requires_grad_(id(parameter) in affine)
        elif policy == "freeze_all" and id(parameter) in affine:
            parameter.requires_grad_(False)


def set_batch_norm_mode(model: nn.Module, policy: BatchNormPolicy) -> None:
    """Puts BatchNorm into evaluation mode where its statistics are frozen. Call after every `model.train()`."""
    if policy in ("freeze_stats", "freeze_all"):
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()
