"""Command line: `taxaclip convert`."""

import argparse
import sys
from pathlib import Path

import huggingface_hub
import torch

from taxaclip.convert import hf_to_open_clip, open_clip_to_hf

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(prog="taxaclip", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="open_clip checkpoint to a folder of transformers, or back")
    convert.add_argument("src", type=Path, help="folder or file of the checkpoint")
    convert.add_argument("dst", type=Path, help="new folder")
    convert.add_argument("--reverse", action="store_true", help="from a folder of transformers to open_clip")
    convert.add_argument("--dtype", choices=sorted(DTYPES), help="of the written weights; default: as in the source")
    convert.add_argument("--hidden-act", choices=["gelu", "quick_gelu"], help="instead of what the configuration says")
    convert.add_argument("--keep-replay", action="store_true", help="also write the projection of the replay data")
    convert.add_argument("--push-to-hub", metavar="REPO", help="also upload the result to this repository")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, or 2 with one line on stderr for what cannot be done.

    Args:
        arguments (list of `str`, *optional*): the arguments; those of the process by default.
    """
    args = build_parser().parse_args(arguments)
    try:
        if args.reverse and (args.dtype or args.hidden_act or args.keep_replay):
            raise ValueError("--dtype, --hidden-act and --keep-replay do not go with --reverse, which is bit-exact.")
        if args.reverse:
            folder = hf_to_open_clip(args.src, args.dst)
        else:
            folder = open_clip_to_hf(
                args.src,
                args.dst,
                dtype=DTYPES.get(args.dtype),
                hidden_act=args.hidden_act,
                keep_replay=args.keep_replay,
            )
        if args.push_to_hub:
            huggingface_hub.create_repo(args.push_to_hub, exist_ok=True)
            huggingface_hub.upload_folder(repo_id=args.push_to_hub, folder_path=folder)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"taxaclip: {error}\n")
        return 2
    sys.stdout.write(f"{folder}\n")
    return 0
