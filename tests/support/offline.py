"""The environment of every test process. Imported before torch, transformers, datasets or triton."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path


def enter() -> None:
    """Point the Hugging Face libraries at an empty home, take them offline, and fix the number of threads.

    Several of these are read once, at import (`HF_HUB_OFFLINE` by huggingface_hub, `TRITON_INTERPRET` by triton), so
    this runs before any of them is imported.
    """
    home = tempfile.mkdtemp(prefix="fovea-tests-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ.update(HF_HOME=home, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HUGGINGFACE_HUB_CACHE"):
        os.environ.pop(name, None)  # they would win over HF_HOME
    # One thread: the same sums in the same order on every machine, and no two test processes fighting for a core.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    if not Path("/dev/nvidia0").exists():  # asking torch would import it
        os.environ["TRITON_INTERPRET"] = "1"
