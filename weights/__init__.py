"""Data of dvt_timm: the manifest of published checkpoints and the embedded demo weights (see demo/README.md)."""
