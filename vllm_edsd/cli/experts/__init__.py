"""`vllm-edsd experts`: an MoE target carved from a dense one, and fewer experts per token on any MoE target."""

import typer

from vllm_edsd.cli.experts.carve import carve
from vllm_edsd.cli.experts.evaluate import evaluate
from vllm_edsd.cli.experts.plan import plan
from vllm_edsd.cli.experts.profile import profile
from vllm_edsd.cli.experts.train import train

experts = typer.Typer(
    help="Fewer experts per token on MoE targets: measured, planned, repaired. Changes the target's output.",
    no_args_is_help=True,
)
for command in (carve, profile, plan, train):
    experts.command()(command)
experts.command("eval")(evaluate)
