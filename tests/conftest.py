import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # tests that need a Hub bring their own

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
