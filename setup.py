import re
from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")

setup(
    packages=[*find_packages(include=["dvt_timm", "dvt_timm.*"]), "dvt_timm.weights"],
    py_modules=["dvt_timm_command"],
    # On a package index, links into the repository lead nowhere as long as it has no public address: their words stay.
    long_description=re.sub(r"!?\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", README),
    long_description_content_type="text/markdown",
)
