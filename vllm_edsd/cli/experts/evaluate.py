"""`vllm-edsd experts eval`: what a plan costs, beside its baselines."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table


def evaluate(
    target: Annotated[Path, typer.Argument(help="Directory of the MoE target's Hugging Face checkpoint.")],
    plan: Annotated[Path, typer.Option(help="Directory that `vllm-edsd experts train` or `plan` wrote.")],
    data: Annotated[
        Path, typer.Option(help="Answers to evaluate on, by `vllm-edsd regen`; none that the plan was made with.")
    ],
    calibration: Annotated[Path, typer.Option(help="Answers that the ridge fit is made from.")],
    questions: Annotated[list[Path] | None, typer.Option(help="Prompt file with `reference`s, for multiple choice.")] = None,
    texts: Annotated[int, typer.Option(min=1, help="Answers to evaluate on.")] = 64,
    calibration_texts: Annotated[int, typer.Option(min=1, help="Answers for the ridge fit.")] = 64,
    choices: Annotated[int, typer.Option(min=1, help="Questions of each file.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of answers and questions.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file.")] = None,
) -> None:
    """The whole target, uniform k, graded k, a ridge fit in every layer, and the hook, on the same text."""
    from transformers import AutoTokenizer

    from vllm_edsd.bench.report import check_place, write
    from vllm_edsd.cli.experts.common import bar, load
    from vllm_edsd.cli.regen import restart_with_preloads
    from vllm_edsd.experts import plan as plans
    from vllm_edsd.experts.allocate import uniform
    from vllm_edsd.experts.choices import read_questions
    from vllm_edsd.experts.evaluation import Arm
    from vllm_edsd.experts.evaluation import evaluate as measure
    from vllm_edsd.experts.kept import keep
    from vllm_edsd.experts.ridge import fit
    from vllm_edsd.experts.texts import choose
    from vllm_edsd.training.export import environment
    from vllm_edsd.training.samples import fingerprint, read_samples

    if json is not None:
        check_place(json)
    planned = plans.read(plan)
    plans.check(planned, plan, target)
    _check_unused(data, planned.provenance, calibration)
    restart_with_preloads()
    model = load(target, "float32")
    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    chosen = choose(read_samples(data), texts, seed)

    def encode(turn: str) -> list[int]:
        return tokenizer.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)["input_ids"]

    def answer(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    asked = [question for file in questions or [] for question in read_questions(file, encode, answer, choices, 4, seed)]
    whole = dict.fromkeys(planned.experts, planned.top_k)
    even = uniform(sorted(planned.experts), planned.top_k, planned.share)
    with bar(Console(stderr=True)) as progress:
        task = progress.add_task("ridge fit", total=2 * calibration_texts, note="")
        step = functools.partial(progress.advance, task)
        kept = keep(model, choose(read_samples(calibration), calibration_texts, seed), planned.experts, step)
        arms = [
            Arm("full", whole),
            Arm("uniform", even),
            Arm("graded", planned.experts),
            Arm("ridge", planned.experts, fit(model, kept, planned.experts, planned.mode, step)),
        ]
        if planned.hook:
            arms.append(Arm("hook", planned.experts, plans.read_hooks(plan, planned.hook, model.config.hidden_size)))
        task = progress.add_task("texts and questions", total=len(arms) * (len(chosen) + len(asked)), note="")
        scores = measure(model, arms, chosen, asked, planned.mode, lambda: progress.advance(task))
    result = {
        **environment(),
        "target": target.name,
        "mode": planned.mode,
        "plan": planned.model_dump(mode="json"),
        "data": f"sha256:{fingerprint(data)}",
        "texts": len(chosen),
        "answer_tokens": sum(len(text.wanted) for text in chosen),
        "questions": len(asked),
        "seed": seed,
        "arms": [dataclasses.asdict(score) for score in scores],
    }
    if json is not None:
        write(result, json)
    Console().print(_table(scores))


def _check_unused(data: Path, provenance: dict[str, Any], calibration: Path) -> None:
    from vllm_edsd.errors import UserError
    from vllm_edsd.training.samples import fingerprint

    mark = f"sha256:{fingerprint(data)}"
    made_with = [provenance.get("data"), *(part.get("data") for part in _nested(provenance))]
    if mark in made_with or mark == f"sha256:{fingerprint(calibration)}":
        raise UserError(f"data {data} is what the plan or the ridge fit is made from; evaluate on other answers")


def _nested(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """The provenances within a provenance: a hook's plan, a plan's profile."""
    inner = [provenance[key] for key in ("plan", "profile") if key in provenance]
    return inner + [deeper for part in inner for deeper in _nested(part)]


def _table(scores: list) -> Table:
    groups = sorted(scores[0].accuracy)
    references = [f"{group} references" for group in groups]
    table = Table("arm", "experts", "perplexity", "95%", "vs full", "KL", "agreement", *groups, *references)
    for score in scores:
        table.add_row(
            score.arm,
            f"{score.experts_per_token:.2f}",
            f"{score.perplexity:.3f}",
            f"{score.low:.3f}..{score.high:.3f}",
            f"{score.perplexity / scores[0].perplexity - 1:+.1%}",
            f"{score.divergence:.4f}",
            f"{score.agreement:.1%}",
            *(f"{score.accuracy[group]:.1%}" for group in groups),
            *(f"{score.references[group] / scores[0].references[group] - 1:+.1%}" for group in groups),
        )
    return table
