"""Maps the two top-level rooms into the package; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

MAPPED = {"vllm_edsd.drafters": "drafters", "vllm_edsd.kernels": "kernels"}


def packages() -> list[str]:
    found = find_packages(include=["vllm_edsd", "vllm_edsd.*"])
    for name, folder in MAPPED.items():
        found.append(name)
        found += [f"{name}.{sub}" for sub in find_packages(folder)]
    return found


setup(packages=packages(), package_dir=MAPPED)
