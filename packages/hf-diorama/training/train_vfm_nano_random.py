"""Writes `vfm-nano-random`: the weights that the other three towers start from, with no training at all.

python packages/hf-diorama/training/train_vfm_nano_random.py
"""

from vfm_nano import build_tower, parse_args, save_tower

if __name__ == "__main__":
    save_tower(build_tower(), parse_args("vfm-nano-random").out)
