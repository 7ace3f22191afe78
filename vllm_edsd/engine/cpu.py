"""What vLLM's CPU backend wants in a process's environment: Intel's OpenMP, and an allocator that keeps its memory.

glibc's gives each large tensor back to the kernel and takes it anew, page by page, which can cost half of the time. They
only take effect in processes started afterwards, so set the environment before the engine starts.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

OPENMP = ("libiomp", "libomp", "libgomp")
ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")
# Where no other allocator is found: glibc's own, told to keep blocks of up to 32 MiB (the largest it allows).
GLIBC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
TCMALLOC_PLACES = ("/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
TCMALLOC_NAMES = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")


def preload_libraries() -> list[Path]:
    """The libraries found on this machine, at most one allocator and one OpenMP; empty when there are none."""
    return [library for library in (tcmalloc(), iomp()) if library is not None]


def iomp() -> Path | None:
    """Intel's OpenMP runtime, which the `intel-openmp` wheel puts into the environment's lib folder."""
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    return library if library.is_file() else None


def tcmalloc() -> Path | None:
    """The system's tcmalloc (Debian: libtcmalloc-minimal4)."""
    for name in TCMALLOC_NAMES:
        for place in TCMALLOC_PLACES:
            for library in sorted(Path("/").glob(f"{place[1:]}/{name}")):
                return library
    return None


def cpu_environment(base: Mapping[str, str]) -> dict[str, str]:
    """A copy of environment `base` with LD_PRELOAD extended; what it already preloads of either kind is kept alone."""
    preload = base.get("LD_PRELOAD", "")
    added = []
    for library, kind in ((tcmalloc(), ALLOCATORS), (iomp(), OPENMP)):
        if library is not None and not any(name in preload for name in kind):
            added.append(str(library))
    environment = dict(base)
    if added:
        environment["LD_PRELOAD"] = ":".join([*added, preload] if preload else added)
    if not any(name in environment.get("LD_PRELOAD", "") for name in ALLOCATORS):
        environment = GLIBC | environment
    return environment


def restart(main: str) -> None:
    """Starts this process's command again as `python -m main` with `cpu_environment`, unless it has it already."""
    environment = cpu_environment(os.environ)
    if environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, "-m", main, *sys.argv[1:]], environment)
