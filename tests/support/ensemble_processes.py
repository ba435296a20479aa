"""A process of a group that trains an ensemble and its student; started by torch.distributed.run.

PYTHONPATH=tests python -m torch.distributed.run --nproc_per_node 2 tests/support/ensemble_processes.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from support import tiny_ensembles


def main() -> None:
    folder = Path(sys.argv[1])
    targets = tiny_ensembles.run(folder)
    content = dict(zip(targets["id"][:], targets["target"][:], strict=True))
    (folder / f"targets-{dist.get_rank()}.json").write_text(json.dumps(content))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
