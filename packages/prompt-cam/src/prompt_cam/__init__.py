"""Class prompts for frozen vision transformers whose attention shows the traits of each class: Prompt-CAM."""

from prompt_cam.configuration_prompt_cam import PromptCAMConfig
from prompt_cam.explanations import Counterfactual
from prompt_cam.figures import find_visible_box
from prompt_cam.functional import (
    aggregate_heads,
    blur_weights,
    count_traits,
    leave_one_out,
    patch_attention,
    remove_greedily,
    shapley_values,
    smooth_maps,
)
from prompt_cam.modeling_prompt_cam import PromptCAMForImageClassification, get_prompt_cam_model
from prompt_cam.output import PromptCAMOutput
from prompt_cam.ranking import HeadRanking

__version__ = "0.1.0"

__all__ = [
    "Counterfactual",
    "HeadRanking",
    "PromptCAMConfig",
    "PromptCAMForImageClassification",
    "PromptCAMOutput",
    "aggregate_heads",
    "blur_weights",
    "count_traits",
    "find_visible_box",
    "get_prompt_cam_model",
    "leave_one_out",
    "patch_attention",
    "remove_greedily",
    "shapley_values",
    "smooth_maps",
]
