"""Semi-supervised losses: pseudo-label, FixMatch, FlexMatch, FreeMatch, SoftMatch and FineSSL.

Each is a module whose thresholds are buffers, so that they are saved with a checkpoint. Weak views give the targets,
without gradient; strong views learn them. Under several processes statistics are over the batches of all of them
(`gather`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

Gather = Callable[[torch.Tensor], torch.Tensor]
EMA = 0.999


class SSLAlgorithm(nn.Module):
    """The loss of one batch of unlabelled images.

    Args:
        num_classes: C.
        num_unlabeled: size of the unlabelled pool.
        gather: from this process's rows to those of all processes; the identity on one.
    """

    def __init__(self, num_classes: int, num_unlabeled: int, gather: Gather = lambda tensor: tensor):
        super().__init__()
        self.num_classes = num_classes
        self.num_unlabeled = num_unlabeled
        self.gather = gather

    def supervised_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of labelled images: cross-entropy."""
        return cross_entropy(logits.float(), labels)

    def forward(
        self, weak: torch.Tensor, strong: torch.Tensor, indices: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """The loss of unlabelled images, a mean over all of them.

        Args:
            weak, strong: logits `(N, C)` of the two views.
            indices: int64 `(N,)`, which images of the pool they are.
            progress: share of the training that is done, in [0, 1].
        """
        raise NotImplementedError

    def start_epoch(self) -> None:
        """Called when a pass over the unlabelled pool begins."""


def read_targets(weak: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities `(N, C)`, their largest `(N,)` and its class `(N,)`, without gradient."""
    probabilities = weak.detach().float().softmax(dim=-1)
    confidence, target = probabilities.max(dim=-1)
    return probabilities, confidence, target


def masked_loss(logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over all rows, also the masked ones, of the weighted cross-entropy."""
    return (mask.float() * cross_entropy(logits.float(), target, reduction="none")).mean()


class PseudoLabel(SSLAlgorithm):
    """Pseudo-Label (Lee, 2013): the weak view learns its own confident predictions, with a weight that grows.

    Args:
        threshold: least confidence.
        warm_up: share of the training in which the weight grows from 0 to 1.
    """

    threshold, warm_up = 0.95, 0.4

    def forward(
        self, weak: torch.Tensor, strong: torch.Tensor, indices: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """min(progress / warm_up, 1) times the masked loss of the weak view."""
        _, confidence, target = read_targets(weak)
        return min(progress / self.warm_up, 1.0) * masked_loss(weak, target, confidence >= self.threshold)


class FixMatch(SSLAlgorithm):
    """FixMatch (arXiv 2001.07685): the strong view learns confident predictions of the weak one."""

    threshold = 0.95

    def forward(
        self, weak: torch.Tensor, strong: torch.Tensor, indices: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """The masked loss of the strong view."""
        _, confidence, target = read_targets(weak)
        return masked_loss(strong, target, confidence >= self.threshold)


class FlexMatch(SSLAlgorithm):
    """FlexMatch (arXiv 2110.08263): a lower threshold for classes that are learned less well.

    A class's status is the number of pool images that were last confident in it, over the largest such number, images
    that never were confident counted as a class (warm-up): threshold 0.95 beta / (2 - beta).
    """

    selected: torch.Tensor
    threshold = 0.95

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_buffer("selected", torch.full((self.num_unlabeled,), self.num_classes))

    def status(self) -> torch.Tensor:
        """beta of each class, float32 `(C,)` in [0, 1]."""
        counts = torch.bincount(self.selected, minlength=self.num_classes + 1)
        return counts[: self.num_classes] / counts.max().clamp_min(1)

    def forward(
        self, weak: torch.Tensor, strong: torch.Tensor, indices: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """The masked loss of the strong view; the status is updated afterwards."""
        _, confidence, target = read_targets(weak)
        beta = self.status()[target]
        mask = confidence >= self.threshold * beta / (2 - beta)
        sure, names, rows = (self.gather(part) for part in (confidence >= self.threshold, target, indices))
        self.selected[rows[sure]] = names[sure]
        return masked_loss(strong, target, mask)


class FreeMatch(SSLAlgorithm):
    """FreeMatch (arXiv 2205.07246): thresholds, global and of each class, from moving means, and a fairness term.

    Args:
        use_quantile: the global threshold follows the 0.8 quantile of confidences in the place of their mean.
        clip_threshold: it is at most 0.95.
    """

    tau: torch.Tensor
    p_model: torch.Tensor
    histogram: torch.Tensor
    fairness_weight = 0.01

    def __init__(self, *args: Any, use_quantile: bool = False, clip_threshold: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.use_quantile, self.clip_threshold = use_quantile, clip_threshold
        self.register_buffer("tau", torch.tensor(1 / self.num_classes))
        self.register_buffer("p_model", torch.full((self.num_classes,), 1 / self.num_classes))
        self.register_buffer("histogram", torch.full((self.num_classes,), 1 / self.num_classes))

    def forward(
        self, weak: torch.Tensor, strong: torch.Tensor, indices: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """The masked loss of the strong view plus 0.01 of the fairness term."""
        probabilities, confidence, target = read_targets(weak)
        every, sure, names = (self.gather(part) for part in (probabilities, confidence, target))
        self.tau.lerp_(sure.quantile(0.8) if self.use_quantile else sure.mean(), 1 - EMA)
        if self.clip_threshold:
            self.tau.clamp_(max=0.95)
        self.p_model.lerp_(every.mean(dim=0), 1 - EMA)
        self.histogram.lerp_(one_hot(names, self.num_classes).float().mean(dim=0), 1 - EMA)
        mask = confidence >= self.tau * (self.p_model / self.p_model.max())[target]
        return masked_loss(strong, target, mask) + self.fairness_weight * self._fairness(strong[mask])

    def _fairness(self, strong: torch.Tensor) -> torch.Tensor:
        """sum over c of norm(p_model / histogram) log norm(mean of strong / its histogram); 1 / 0 counts as 0."""
        if not len(strong):
            return strong.sum()
        probabilities = strong.float().softmax(dim=-1)
        histogram = one_hot(probabilities.argmax(dim=-1), self.num_classes).float().mean(dim=0)
        wanted = _normalise(self.p_model * _invert(self.histogram))
        given = _normalise(probabilities.mean(dim=0) * _invert(histogram))
        return (wanted * (given + 1e-12).log()).sum()


def _invert(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values > 0, 1 / values.clamp_min(1e-12), torch.zeros_like(values))


def _normalise(values: torch.Tensor) -> torch.Tensor:
    return values / values.sum(dim=-1, keepdim=True).clamp_min(1e-12)


class SoftMatch(SSLAlgorithm):
    """SoftMatch (arXiv 2301.10921): a Gaussian weight by confidence, no threshold, and a uniform alignment."""

    p_mean: torch.Tensor
    mu: torch.Tensor
    var: torch.Tensor
    num_sigma = 2.0

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_buffer("p_mean", torch.full((self.num_classes,), 1 / self.num_classes))
        self.register_buffer("mu", torch.tensor(1 / self.num_classes))
        self.register_buffer("var", torch.tensor(1.0))

    def forward(
        self, weak: torch.Tensor, strong: torch.Tensor, indices: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """The weighted loss of the strong view; targets are of the unaligned probabilities."""
        probabilities, _, target = read_targets(weak)
        self.p_mean.lerp_(self.gather(probabilities).mean(dim=0), 1 - EMA)
        aligned = _normalise(probabilities * (1 / self.num_classes + 1e-6) / (self.p_mean + 1e-6))
        confidence = aligned.max(dim=-1).values
        every = self.gather(confidence)
        self.mu.lerp_(every.mean(), 1 - EMA)
        self.var.lerp_(every.var(unbiased=True) if len(every) > 1 else torch.zeros_like(self.var), 1 - EMA)
        below = (confidence - self.mu).clamp(max=0)
        return masked_loss(strong, target, torch.exp(-(below**2) / (2 * self.var / self.num_sigma**2)))


class FineSSL(SSLAlgorithm):
    """FineSSL as V-PET's code has it, but with the strong view where that code takes the weak one twice.

    Margins by class status, for labelled and unlabelled images: a_c = (1 - s_c) / (1 + s_c) (max s - min s) alpha is
    added to every logit but the target's. The status is over one pass of the pool.

    Args:
        weak_view: learn the weak view, as that code does.
    """

    selected: torch.Tensor
    alpha, weight, threshold = 8.0, 3.0, 0.7

    def __init__(self, *args: Any, weak_view: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.weak_view = weak_view
        self.register_buffer("selected", torch.full((self.num_unlabeled,), self.num_classes))

    def start_epoch(self) -> None:
        """Forget the status."""
        self.selected.fill_(self.num_classes)

    def margins(self) -> torch.Tensor:
        """a of each class, float32 `(C,)`; zeros while nothing was confident."""
        counts = torch.bincount(self.selected, minlength=self.num_classes + 1)[: self.num_classes]
        status = counts / counts.max().clamp_min(1)
        return (1 - status) / (1 + status) * (status.max() - status.min()) * self.alpha

    def _with_margin(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        others = 1 - one_hot(target, self.num_classes).float()
        return logits.float() + self.margins()[target][:, None] * others

    def supervised_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy with margins."""
        return cross_entropy(self._with_margin(logits, labels), labels)

    def forward(
        self, weak: torch.Tensor, strong: torch.Tensor, indices: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """3 times the loss with margins, weighted by confidence where that is at least 0.7."""
        _, confidence, target = read_targets(weak)
        mask = confidence >= self.threshold
        learned = weak if self.weak_view else strong
        loss = self.weight * masked_loss(self._with_margin(learned, target), target, mask * confidence)
        sure, names, rows = (self.gather(part) for part in (mask, target, indices))
        self.selected[rows[sure]] = names[sure]
        return loss


ALGORITHMS: dict[str, type[SSLAlgorithm]] = {
    "pseudo_label": PseudoLabel,
    "fixmatch": FixMatch,
    "flexmatch": FlexMatch,
    "freematch": FreeMatch,
    "softmatch": SoftMatch,
    "finessl": FineSSL,
}
