"""Forward pass of llava-nano in training: images read once, many short dialogues about them side by side.

It computes what `LlavaForConditionalGeneration` computes for the images followed by one of the dialogues (a test holds
both together), for a fraction of the attention that one long dialogue would need, and shows where heads look.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration

IMAGE_TOKENS = 16
BLOCK = IMAGE_TOKENS + 2  # "image", its number, its patches


class Output(NamedTuple):
    """Hidden states of the dialogues, and for each layer attention within the images and from dialogues to images.

    Shapes: `hidden` (B, G, L, D), `within` (B, H, P, P), `onto` (B, G, H, L, P), for B contexts of P image tokens, G
    dialogues of L tokens.
    """

    hidden: torch.Tensor
    within: list[torch.Tensor]
    onto: list[torch.Tensor]


def _norm(x: torch.Tensor, norm: torch.nn.Module) -> torch.Tensor:
    scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return x * scale.to(x.dtype) * norm.weight.to(x.dtype)


def _linear(x: torch.Tensor, *modules: torch.nn.Module) -> torch.Tensor:
    return F.linear(x, torch.cat([module.weight for module in modules]).to(x.dtype))


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _attend(qkv, num_prefix, num_dialogues, mask_prefix, mask_dialogue):
    """Returns the mixed values (B, N, H * D) and both attentions; heads are ordered by the key they share."""
    q, k, v = qkv  # (B, K, R, N, D), (B, K, N, D) twice: K key heads with R queries each
    b, kv, r, n, d = q.shape
    p, g = num_prefix, num_dialogues
    length = (n - p) // g
    q = q * d**-0.5
    kp, vp = k[:, :, :p], v[:, :, :p]
    scores = (q[..., :p, :].reshape(b, kv, r * p, d) @ kp.transpose(-1, -2)).view(b, kv, r, p, p) + mask_prefix
    within = scores.softmax(-1)
    first = (within.view(b, kv, r * p, p) @ vp).view(b, kv * r, p, d).transpose(1, 2).reshape(b, p, -1)
    qd = q[..., p:, :].reshape(b, kv, r, g, length, d).transpose(2, 3).reshape(b, kv, g, r * length, d)
    kd, vd = (x[:, :, p:].reshape(b, kv, g, length, d) for x in (k, v))
    far = qd.reshape(b, kv, g * r * length, d) @ kp.transpose(-1, -2)  # (B, K, G * R * L, P)
    near = (qd @ kd.transpose(-1, -2)).view(b, kv, g, r, length, length) + mask_dialogue
    both = torch.cat([far, near.reshape(b, kv, -1, length)], dim=-1).softmax(-1)
    far, near = both[..., :p], both[..., p:].reshape(b, kv, g, r * length, length)
    mixed = (far @ vp).view(b, kv, g, r, length, d) + (near @ vd).view(b, kv, g, r, length, d)
    second = mixed.permute(0, 2, 4, 1, 3, 5).reshape(b, g * length, -1)
    onto = far.view(b, kv, g, r, length, p).transpose(1, 2).reshape(b, g, kv * r, length, p)
    return torch.cat([first, second], dim=1), within.view(b, kv * r, p, p), onto


def run(
    model: LlavaForConditionalGeneration,
    features: torch.Tensor,
    numbers: torch.Tensor,
    ids: torch.Tensor,
    dtype: torch.dtype = torch.bfloat16,
) -> Output:
    """Returns the output of the language model; computed in `dtype`, from weights in fp32.

    Args:
        model (`LlavaForConditionalGeneration`): the model; its tower is not used.
        features (`torch.Tensor` of shape `(batch_size, num_images, 16, width)`): features of the tower.
        numbers (`torch.Tensor` of shape `(num_images, 2)`): the tokens before each image.
        ids (`torch.Tensor` of shape `(batch_size, num_dialogues, length)`): the dialogues, padded on the right.
        dtype (`torch.dtype`): what to compute in.
    """
    llava, decoder = model.model, model.model.language_model
    embed = decoder.embed_tokens
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        images = llava.multi_modal_projector(features).to(dtype)  # (B, K, 16, D)
    before = embed(numbers).to(dtype).expand(len(ids), -1, -1, -1)
    prefix = torch.cat([before, images], dim=2).flatten(1, 2)
    x = torch.cat([prefix, embed(ids.flatten(1)).to(dtype)], dim=1)  # (B, N, D)
    b, n, _ = x.shape
    p, (_, g, length) = prefix.shape[1], ids.shape
    places = torch.cat([torch.arange(p), p + torch.arange(length).repeat(g)])
    cos, sin = (table.to(dtype) for table in decoder.rotary_emb(x.float(), places[None]))
    masks = [torch.full((size, size), -1e9, dtype=dtype).triu(1) for size in (p, length)]
    config, within, onto = decoder.config, [], []
    kv, d = config.num_key_value_heads, config.head_dim
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = _linear(_norm(x, layer.input_layernorm), attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = qkv.view(b, n, -1, d).transpose(1, 2)
        rotated = _rotate(qkv[:, :-kv], cos, sin)
        heads = rotated[:, :-kv].unflatten(1, (kv, -1)), rotated[:, -kv:], qkv[:, -kv:]
        mixed, inside, outside = _attend(heads, p, g, *masks)
        within.append(inside)
        onto.append(outside)
        x = x + _linear(mixed, attention.o_proj)
        gate, up = _linear(_norm(x, layer.post_attention_layernorm), mlp.gate_proj, mlp.up_proj).chunk(2, dim=-1)
        x = x + _linear(F.silu(gate) * up, mlp.down_proj)
    hidden = _norm(x[:, p:], decoder.norm).view(b, g, length, -1)
    return Output(hidden, within, onto)
