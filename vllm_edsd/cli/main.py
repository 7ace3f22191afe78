"""The command line `vllm-edsd`."""

import sys

import typer

from vllm_edsd.cli.bench import bench
from vllm_edsd.cli.demo import demo
from vllm_edsd.cli.doctor import doctor
from vllm_edsd.cli.eval import evaluate
from vllm_edsd.cli.experts import experts
from vllm_edsd.cli.layers import layers
from vllm_edsd.cli.plan import plan
from vllm_edsd.cli.profile import profile
from vllm_edsd.cli.prompts import prompts
from vllm_edsd.cli.regen import regen
from vllm_edsd.cli.robustness import robustness
from vllm_edsd.cli.target import target
from vllm_edsd.cli.train import train
from vllm_edsd.cli.trim import trim
from vllm_edsd.errors import UserError

app = typer.Typer(
    help="Speculative decoding beside a stock vLLM: train drafters, serve with them, measure them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (target, prompts, regen, layers, train, trim, plan, robustness, bench, profile, doctor, demo):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(experts, name="experts")


def main() -> None:
    """Runs a command; a user's mistake is one message on standard error and status 2."""
    try:
        app()
    except UserError as error:
        print(f"vllm-edsd: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
