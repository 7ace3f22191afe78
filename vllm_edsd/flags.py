"""`vllm serve TARGET --edsd DRAFTER --edsd.num-tokens 5`, and the environment that stands for it in containers.

vLLM's parser turns `--edsd.key value` into `--edsd '{"key": value}'`; the action below merges that with the drafter's name.
What comes out of parsing is vLLM's own arguments and nothing else, so no flag leaves no trace.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vllm_edsd.config import ServeConfig, validate
from vllm_edsd.drafters.target import TargetShape, read_target
from vllm_edsd.errors import UserError
from vllm_edsd.place import Place
from vllm_edsd.serving import ADMIN_TOKEN, administration, costs, engine_arguments, from_environment, variable
from vllm_edsd.serving import prepare as ready
from vllm_edsd.targets import check_exists

FLAG = "--edsd"
RIVALS = ("speculative_config", "spec_method", "spec_model", "spec_tokens")
# The options that turn us on; all others say how.
STARTERS = {"drafter", "experts"}
Prepare = Callable[..., None]  # engine.serve.prepare
Where = Callable[[Mapping[str, Any]], Place]  # engine.serve.place


def asked_for(arguments: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a command line or environment turns us on."""
    flagged = any(argument == FLAG or argument.startswith((f"{FLAG}=", f"{FLAG}.")) for argument in arguments)
    return flagged or not STARTERS.isdisjoint(from_environment(environ))


def extend(parser: argparse.ArgumentParser, prepare: Prepare, where: Where) -> None:
    """Adds `--edsd` to `parser` and lets every parse that uses it (or EDSD_DRAFTER) fill in `speculative_config` and so on.

    `where` says of the parsed arguments what can be used there; `prepare` is called with the target, if its
    configuration is readable and it must fit, before the parse returns. A user's mistake ends the process with one message
    and status 2.
    """
    group = parser.add_argument_group("EDSD", "Speculative decoding with a trained drafter (vllm-edsd).")
    group.add_argument(FLAG, action=_Collect, default=argparse.SUPPRESS, metavar="DRAFTER", help=_help())
    parse = parser.parse_known_args

    def parse_known_args(args: Sequence[str] | None = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        arguments = list(sys.argv[1:] if args is None else args)
        try:
            found, rest = parse(arguments, namespace)
            # vLLM parses an empty line to learn its defaults: those must not depend on the environment.
            if arguments:
                apply(found, os.environ, prepare, where)
        except UserError as error:
            parser.exit(2, f"{parser.prog}: error: {error}\n")
        return found, rest

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign,assignment]


def apply(namespace: argparse.Namespace, environ: Mapping[str, str], prepare: Prepare, where: Where) -> None:
    """Replaces what `--edsd` and `environ` say by vLLM's own arguments; the flag wins. Raises UserError."""
    flagged = vars(namespace).pop("edsd", {})
    from_env = from_environment(environ)
    given = from_env | flagged
    if not flagged and STARTERS.isdisjoint(given):
        return

    def spell(field: str) -> str:
        return variable(field) if field in from_env and field not in flagged else flag(field)

    rival = next((name for name in RIVALS if getattr(namespace, name, None) is not None), None)
    if rival is not None and "drafter" in given:
        raise UserError(
            f"{spell('drafter')} and --{rival.replace('_', '-')} (value {getattr(namespace, rival)}) both configure "
            "speculative decoding; give one of them"
        )
    if flagged.keys() == {"experts_mode"} and STARTERS.isdisjoint(given):
        raise UserError(f"{spell('experts_mode')} needs a plan; add {flag('experts')} PLAN or set {variable('experts')}")
    if STARTERS.isdisjoint(given):
        raise UserError(f"{spell(next(iter(flagged)))} needs a drafter; add {FLAG} DRAFTER or set {variable('drafter')}")
    config = validate(ServeConfig, given, None, spell)
    name = getattr(namespace, "model_tag", None) or namespace.model
    check_exists(name)
    target = _as_built(read_target(name, getattr(namespace, "revision", None)), namespace)
    coefficients = costs(config, name, getattr(namespace, "dtype", "auto"))
    arguments = engine_arguments(config, target, where(vars(namespace)), coefficients)
    if environ.get(ADMIN_TOKEN):
        arguments["middleware"] = [*getattr(namespace, "middleware", []), administration(environ[ADMIN_TOKEN], arguments)]
    for argument, value in arguments.items():
        if argument in ("additional_config", "hf_overrides"):
            value = {**(getattr(namespace, argument, None) or {}), **value}
        setattr(namespace, argument, value)
    ready(prepare, config, target, arguments)


def flag(field: str) -> str:
    """An option as it is written on the command line."""
    return FLAG if field == "drafter" else f"{FLAG}.{field.replace('_', '-')}"


def _as_built(target: TargetShape | None, namespace: argparse.Namespace) -> TargetShape | None:
    """`target` with the architectures that vLLM builds: --hf-overrides' if given; none on the Transformers backend."""
    if target is None:
        return None
    if getattr(namespace, "model_impl", None) == "transformers":
        return replace(target, architectures=())
    overrides = getattr(namespace, "hf_overrides", None) or {}
    return replace(target, architectures=tuple(overrides.get("architectures", target.architectures)))


class _Collect(argparse.Action):
    """Merges drafter names and JSON objects, in any order, into one mapping by option name."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), **_read(values)})


def _read(value: str) -> dict[str, Any]:
    if not value.lstrip().startswith("{"):
        return {"drafter": value}
    try:
        return {key.replace("-", "_"): inner for key, inner in json.loads(value).items()}
    except json.JSONDecodeError as error:
        raise UserError(
            f"{FLAG} {value!r} is not valid JSON ({error}); give a drafter's name, its path, or valid JSON"
        ) from None


def _help() -> str:
    options = [
        f"{flag(name)} ({variable(name)}): {field.description} [{'required' if field.is_required() else field.default}]"
        for name, field in ServeConfig.model_fields.items()
    ]
    return "\n- ".join(["Serve with this drafter. Options, with the environment variable of each:", *options])
