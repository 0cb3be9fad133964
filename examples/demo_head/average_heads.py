"""Mean of the weights of a head and of heads that went on from it (`train --initial-head`).

    python examples/average_heads.py RUN1/last RUN2/last --out HEAD

Each is a folder of `save_head`, or a run's `last`; one that is named more than once counts that often. Heads that were
trained apart have no mean worth having: only along one line of training do weights stand for the same thing.
"""

import argparse
from pathlib import Path

import torch

import dvt_timm
from dvt_timm.checkpoints.heads import read_head

MUST_AGREE = ("base", "stride", "base_sha256", "grid_size", "num_blocks")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("heads", nargs="+", metavar="HEAD")
parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write to")
arguments = parser.parse_args()

heads, configs = zip(*(read_head(source) for source in arguments.heads), strict=True)
kinds = [{key: config.get(key) for key in MUST_AGREE} for config in configs]
for source, kind in zip(arguments.heads, kinds, strict=True):
    if kind != kinds[0] or kind["base"] is None:
        parser.error(
            f"only heads of one shape and backbone have a mean, got {kinds[0]} and {kind} in {source}; "
            "give folders that save_head or train wrote for the same backbone"
        )

weights = [head.state_dict() for head in heads]
head = heads[0]
head.load_state_dict({key: torch.stack([each[key] for each in weights]).mean(dim=0) for key in weights[0]})
of_base = {key: kinds[0][key] for key in ("base", "stride", "base_sha256")}
print("mean written to", dvt_timm.save_head(head, arguments.out, **of_base))
