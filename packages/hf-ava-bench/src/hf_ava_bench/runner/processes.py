"""The processes that share a run."""

import torch
from accelerate import PartialState


def get_state() -> PartialState:
    """Returns what `accelerate` knows of the processes of this run; they talk through gloo where there is no GPU.

    Example:

    ```python
    >>> from hf_ava_bench.runner.processes import get_state
    >>> get_state().num_processes
    1

    ```
    """
    return PartialState(cpu=not torch.accelerator.is_available())
