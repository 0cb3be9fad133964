"""What the tests of pushing and of cards share."""

from hub_server import Hub
from huggingface_hub import ModelCard

METRICS = {"PASCAL VOC 2012": {"mIoU": 84.92}, "NYU Depth v2": {"RMSE": 0.3811}}


def card_of(hub: Hub, repo: str) -> ModelCard:
    return ModelCard(hub.repos[repo].files()["README.md"].decode())
