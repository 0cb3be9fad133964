"""The tasks of `dvt-timm evaluate`: rows and data in, a report out."""
