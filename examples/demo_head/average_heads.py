"""Mean of the weights of a head and of heads that went on from it (`train --initial-head`).

    python examples/demo_head/average_heads.py RUN1/last RUN2/last --out HEAD

Each is a folder that `save_head` wrote, such as a run's `last`; one that is named twice counts twice. Heads that were
trained apart have no mean worth having: only along one line of training do weights stand for the same thing.
"""

import argparse
import json
from pathlib import Path

import torch

import dvt_timm

MUST_AGREE = ("base", "stride", "base_sha256", "grid_size", "num_blocks")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folders", nargs="+", type=Path, metavar="HEAD")
parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write to")
arguments = parser.parse_args()

kinds = []
for folder in arguments.folders:
    if not (folder / "config.json").is_file():
        parser.error(f"{folder} does not say its backbone (no config.json); give folders that save_head or train wrote")
    config = json.loads((folder / "config.json").read_text())
    kinds.append({key: config[key] for key in MUST_AGREE})
    if kinds[-1] != kinds[0]:
        parser.error(
            f"only heads of one shape and backbone have a mean, got {kinds[0]} and {kinds[-1]} in {folder}; "
            "give folders that save_head or train wrote for the same backbone"
        )

heads = [dvt_timm.load_head(folder) for folder in arguments.folders]
weights = [head.state_dict() for head in heads]
head = heads[0]
head.load_state_dict({key: torch.stack([each[key] for each in weights]).mean(dim=0) for key in weights[0]})
of_base = {key: kinds[0][key] for key in ("base", "stride", "base_sha256")}
print("mean written to", dvt_timm.save_head(head, arguments.out, **of_base))
