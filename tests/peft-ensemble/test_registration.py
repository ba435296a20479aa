"""peft knows our methods, nothing of its own has changed, and the internals that this touches are as expected."""

import copy
import enum
import pickle
import subprocess
import sys
from types import ModuleType

import pytest
from peft import LoraConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from peft_ensemble import SSFConfig
from peft_ensemble.registration import add_peft_type, register
from peft_ensemble.tuners.ssf import SSFModel

NAMES = "adaptformer bitfit convpass difffit fact houlsby pfeiffer repadapter shared_lora ssf vpt".split()


@pytest.mark.parametrize("name", NAMES)
def test_method_is_registered_under_its_name(name):
    member = PeftType(f"VIS_{name.upper()}")
    assert member is PeftType[f"VIS_{name.upper()}"] is getattr(PeftType, f"VIS_{name.upper()}")
    assert member in list(PeftType)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member].name == f"vis_{name}"
    assert PEFT_TYPE_TO_TUNER_MAPPING[member].prefix == PEFT_TYPE_TO_PREFIX_MAPPING[member] == f"vis_{name}_"
    assert pickle.loads(pickle.dumps(member)) is member
    assert copy.deepcopy(member) is member
    assert (member == f"VIS_{name.upper()}", str(member.value)) == (True, f"VIS_{name.upper()}")


def test_registering_again_changes_nothing():
    before = list(PeftType), dict(PEFT_TYPE_TO_CONFIG_MAPPING)
    register("vis_ssf", SSFConfig, SSFModel)
    assert (list(PeftType), dict(PEFT_TYPE_TO_CONFIG_MAPPING)) == before


def test_name_of_another_package_is_refused():
    with pytest.raises(ValueError, match=r"peft\.tuners\.lora\.config\.LoraConfig has the name"):
        register("lora", SSFConfig, SSFModel)


def test_existing_names_are_returned_as_they_are():
    assert add_peft_type("lora") is PeftType.LORA
    assert LoraConfig().peft_type is PeftType.LORA


def test_names_are_distinctive():
    # A later peft that ships SSF or VPT would use these names, not ours.
    assert all(f"VIS_{name.upper()}" not in ("SSF", "VPT", "ADAPTFORMER") for name in NAMES)
    code = "from peft import PeftType; print([m.value for m in PeftType if m.value.startswith('VIS_')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# Canaries: each internal of enum and peft that registration.py touches.


@pytest.mark.parametrize("attribute", ["_member_map_", "_member_names_", "_value2member_map_"])
def test_enum_still_keeps_its_members_in(attribute):
    assert len(getattr(PeftType, attribute)) == len(PeftType)


def test_peft_type_is_still_an_enum_of_strings():
    assert issubclass(PeftType, str)
    assert issubclass(PeftType, enum.Enum)


def test_peft_still_refuses_names_that_are_not_in_its_enum():
    # When this fails, peft takes string names and registration.py can go.
    from peft.utils import register_peft_method

    with pytest.raises(ValueError, match="Unknown PEFT type"):
        register_peft_method(name="vis_no_such_method", config_cls=SSFConfig, model_cls=SSFModel)


def test_peft_still_has_what_the_tuners_override():
    import peft.tuners.tuners_utils as theirs

    assert isinstance(theirs, ModuleType)
    for name in ("_prepare_adapter_config", "_prepare_model", "_create_and_replace", "_check_merge_allowed"):
        assert callable(getattr(theirs.BaseTuner, name))
    for name in ("_get_base_layer_device_and_dtype", "_move_adapter_to_device_of_base_layer", "set_adapter"):
        assert callable(getattr(theirs.BaseTunerLayer, name))


def test_adapters_without_the_import_fail_and_say_the_type(tmp_path):
    SSFConfig(target_modules=["x"]).save_pretrained(tmp_path)
    code = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(tmp_path)!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "KeyError: 'VIS_SSF'" in result.stderr
    result = subprocess.run(
        [sys.executable, "-c", "import peft_ensemble; " + code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
