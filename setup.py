"""Which folders the build takes; all else stands in pyproject.toml. The examples lie in the wheel under a name that is ours alone."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["meanfield*", "solvers*"]), "meanfield_examples"],
    package_dir={"meanfield_examples": "examples"},
)
