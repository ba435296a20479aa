"""Makes peft know methods that it does not ship: the one place that touches its closed enum of method names.

peft offers `register_peft_method`, but only for names that are already in `PeftType`. A new name is added to the enum
the way `enum` itself would; peft's own entries are left alone. Names begin with `vis_`, so that a method of the same
name in a later peft does not meet ours.
"""

from typing import Any

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method


def add_peft_type(name: str) -> Any:
    """The member of `PeftType` with this name, added if it is not there yet.

    Args:
        name: in lower case, such as `"vis_ssf"`; the member is in upper case, as peft's are.

    Example:

    ```python
    >>> member = add_peft_type("vis_ssf")
    >>> member is add_peft_type("vis_ssf"), str(member.value)
    (True, 'VIS_SSF')

    ```
    """
    value = name.upper()
    if value in PeftType.__members__:
        return PeftType[value]
    member = str.__new__(PeftType, value)
    member._name_ = value
    member._value_ = value
    PeftType._member_map_[value] = member
    PeftType._member_names_.append(value)
    PeftType._value2member_map_[value] = member
    type.__setattr__(PeftType, value, member)
    return member


def register(name: str, config_class: type[PeftConfig], model_class: type[BaseTuner]) -> None:
    """Make a method available to `get_peft_model`, `PeftModel.from_pretrained` and `add_adapter` of transformers.

    Registering the same classes again does nothing.

    Raises:
        ValueError: another package has registered a method of this name.
    """
    member = add_peft_type(name)
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(member)
    if known is None:
        register_peft_method(name=name, config_cls=config_class, model_cls=model_class, prefix=model_class.prefix)
    elif known is not config_class:
        raise ValueError(
            f"expected the PEFT method {name!r} to be ours, but {known.__module__}.{known.__qualname__} has the name; "
            "uninstall one of the two packages"
        )
