"""The statistics of attention as the formulas say, in float64, with attention held as a whole."""

import torch
from torch import Tensor


def compute_statistics(
    query_states: Tensor,
    key_states: Tensor,
    *,
    scaling: float,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    visible: Tensor | None,
    with_mass: bool,
    head_reduction: str | None,
) -> tuple[Tensor | None, Tensor | None]:
    """`m_j = sum_h sum_i p_hij` and `H_i = -sum_j p_ij ln p_ij`, with `p_i = softmax_j(scaling * q_i k_j)`."""
    num_heads, num_rows, _ = query_states.shape
    groups = num_heads // key_states.shape[0]
    keys = key_states.double().repeat_interleave(groups, dim=0)
    scores = scaling * query_states.double() @ keys.transpose(1, 2)
    if query_positions is not None and key_positions is not None:
        visible = key_positions <= query_positions[:, None]
    if visible is None:
        visible = torch.ones(num_rows, key_states.shape[1], dtype=torch.bool, device=key_states.device)
    lse = scores.masked_fill(~visible, -torch.inf).logsumexp(dim=-1)
    probs = torch.where(visible, (scores - lse[..., None]).exp(), 0.0)
    mass = probs.sum(dim=1).unflatten(0, (-1, groups)).sum(dim=1) if with_mass else None
    if head_reduction == "mean_attention":
        return mass, torch.special.entr(probs.mean(dim=0)).sum(dim=-1)
    if head_reduction == "mean_entropy":
        return mass, torch.special.entr(probs).sum(dim=-1).mean(dim=0)
    return mass, None
