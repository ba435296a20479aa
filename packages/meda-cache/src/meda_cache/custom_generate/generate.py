"""Generation with a compressed KV cache: `model.generate(..., custom_generate=DIR, trust_remote_code=True)`.

Needs `pip install meda-cache`. Exported by `meda-cache export custom-generate DIR`.
"""

from typing import Any

from meda_cache import MedaCache, attach


def generate(model: Any, *, keep_ratio: float = 0.2, preset: str = "balanced", **kwargs: Any) -> Any:
    """Returns what `model.generate(**kwargs)` returns, with a `MedaCache` of its own.

    Args:
        model (`PreTrainedModel`): the model that generates; it is left as it was.
        keep_ratio (`float`, *optional*, defaults to 0.2): share of the prompt's tokens to keep, in (0, 1].
        preset (`str`, *optional*, defaults to `"balanced"`): name of the method, one of `meda_cache.PRESETS`.
        **kwargs: arguments of `generate`.
    """
    if kwargs.get("past_key_values") is not None:
        raise ValueError("Expected no `past_key_values`, which this function makes; call `generate` without it.")
    options: dict[str, Any] = {} if preset == "none" else {"keep_ratio": keep_ratio}
    kwargs["past_key_values"] = MedaCache(model.config, preset=preset, **options)
    with attach(model):
        return model.generate(**kwargs)
