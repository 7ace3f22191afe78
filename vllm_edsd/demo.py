"""The demo: eight prompts to the bundled target, plain and with the bundled EDSD drafter, each on a real server."""

from rich.console import Console
from rich.text import Text

from vllm_edsd.bench.progress import Progress
from vllm_edsd.bench.report import figure, positions, table
from vllm_edsd.bench.run import BenchOptions, Outcome, run_bench
from vllm_edsd.engine import serve
from vllm_edsd.prompts import Prompt
from vllm_edsd.serving import ADAPTIVE, DEFAULT_TOKENS
from vllm_edsd.targets import default_target

QUESTIONS = {
    "fact": "Which planet of our solar system is the largest, and how many Earths would fit into it?",
    "code": "Write a Python function that takes a list of words and returns how often each word occurs.",
    "story": "Tell a short story about a lighthouse keeper who finds a letter in a bottle.",
    "maths": "A baker sells 14 loaves in the morning and twice as many after lunch, at 3 dollars each. What does he earn?",
    "list": "List seven things to pack for a weekend of hiking in the mountains, with a reason for each.",
    "rewriting": "Rewrite this politely: 'Your report is late again. Send it to me today or I will do it without you.'",
    "explanation": "Explain to a ten-year-old why the sky is blue during the day and red in the evening.",
    "summary": (
        "Summarise in two sentences: Bees fly from flower to flower to gather nectar. While doing so they carry "
        "pollen along, and many fruits and vegetables would not grow without it. Where bees become rare, farmers have to "
        "pollinate by hand."
    ),
}
MAX_TOKENS = 128
LINES = 3


def demo_prompts() -> tuple[Prompt, ...]:
    """The eight prompts."""
    return tuple(Prompt(id=name, category=name, turns=[text]) for name, text in QUESTIONS.items())


def run_demo() -> None:
    """Prepares the target, runs both servers and prints what came of it. Raises UserError when something is missing."""
    prompts = demo_prompts()
    with Progress() as progress:
        progress.say("Preparing SmolLM2-135M-Instruct (once) ...")
        target = default_target(lambda step: progress.say(f"  {step}"))
        progress.say(f"Starting `vllm serve {target}` twice: plain, and with `--edsd smollm2-edsd`. About a minute each ...")
        outcome = run_bench(
            BenchOptions(
                target,
                ("none", "edsd"),
                prompts,
                num_tokens=DEFAULT_TOKENS[True],
                policies=("fixed:2",) if serve.place({}).worker else (ADAPTIVE,),
                max_tokens=MAX_TOKENS,
                enforce_eager=True,
            ),
            progress,
        )
    show(outcome, Console(highlight=False))


def show(outcome: Outcome, console: Console) -> None:
    """Prints the first lines of each answer with both speeds, then the totals."""
    plain, drafted = outcome.measurements
    for before, after in zip(plain.samples, drafted.samples, strict=True):
        (old,), (new,) = before.replies, after.replies
        console.print(Text(f"\n> {new.prompt.turns[0]}", style="bold"))
        lines = [line for line in new.text.splitlines() if line.strip()] or [f"(failed: {new.error})"]
        console.print(Text("\n".join(["  " + line for line in lines[:LINES]] + (["  ..."] if len(lines) > LINES else []))))
        rates = [reply.tokens / (reply.ended - reply.begun) for reply in (old, new)]
        console.print(Text(f"  {rates[0]:.0f} -> {rates[1]:.0f} tokens/s, {new.tokens} tokens", style="dim"))
    result = outcome.json()
    console.print("", table(result), *positions(result), sep="\n")
    row = result["arms"][-1]
    console.print(
        f"\nWith the drafter: {figure(row['speedup'], 2)} times the speed of plain decoding, "
        f"{figure(row['acceptance_length'], 2)} tokens for each step of the target. Both servers are stopped."
    )
