from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dvt_timm", "dvt_timm.*"]), "dvt_timm.weights"],
    py_modules=["dvt_timm_command"],
)
