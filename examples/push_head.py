"""Push a denoiser head to the Hugging Face Hub and pull it back: from a folder to a name anyone can load.

    hf auth login                                              # or set HF_TOKEN
    python examples/push_head.py USER/REPO [FOLDER] [--private]

FOLDER is what `dvt_timm.save_head` wrote; without one the embedded demo head is pushed. Takes about 10 seconds and the
upload. `dvt-timm push FOLDER USER/REPO` does the same on the command line.
"""

import argparse

import timm
import torch

import dvt_timm

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("repo", metavar="USER/REPO")
parser.add_argument("folder", metavar="FOLDER", nargs="?")
parser.add_argument("--private", action="store_true", help="make the repository private")
arguments = parser.parse_args()

if arguments.folder is None:
    base = "vit_small_patch14_dinov2.dvt_demo"
    head = timm.create_model(base, pretrained=True).denoiser
else:
    head = dvt_timm.load_head(arguments.folder)
    base = head.source.base

commit = dvt_timm.push_to_hub(head, arguments.repo, base=base, private=arguments.private or None)
print("pushed", commit.commit_url)

pulled = dvt_timm.load_head(f"hf-hub:{arguments.repo}@{commit.oid}")  # this very commit
same = all(torch.equal(value, head.state_dict()[key]) for key, value in pulled.state_dict().items())
print("pulled back, equal bit for bit:", same)

model = timm.create_model(f"hf-hub:{arguments.repo}", pretrained=True).eval()  # base and head
with torch.inference_mode():
    print("features", tuple(model.forward_features(torch.randn(1, 3, 224, 224)).shape))
