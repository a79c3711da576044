"""What pyproject.toml cannot say: two folders of the top level lie inside the installed package."""

from setuptools import find_packages, setup

BESIDE = ("search_spaces", "studies")

setup(
    packages=[*find_packages(include=["nas_kd*"]), *(f"nas_kd.{name}" for name in BESIDE)],
    package_dir={f"nas_kd.{name}": name for name in BESIDE},
)
