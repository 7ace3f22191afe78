"""`vllm-edsd train`: a drafter from one recipe file."""

from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from vllm_edsd.cli.regen import restart_with_preloads
from vllm_edsd.config import Model, validate
from vllm_edsd.errors import UserError
from vllm_edsd.files import replaceable
from vllm_edsd.training.evaluation import Evaluation
from vllm_edsd.training.recipe import Recipe


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file; see drafters/edsd/smollm2.yaml.")],
    out: Annotated[Path, typer.Option(help="Directory to export the drafter to; its checkpoint is kept beside it.")],
    tensorboard: Annotated[
        Path | None, typer.Option(help="Directory for TensorBoard's event files; needs the package tensorboard.")
    ] = None,
) -> None:
    """Train a drafter and export a directory that vLLM loads; run again to resume from the last checkpoint."""
    chosen = read_recipe(recipe, Recipe)
    out = replaceable(out, "provenance.json")
    restart_with_preloads()
    from vllm_edsd.training.board import Board
    from vllm_edsd.training.ranks import Ranks
    from vllm_edsd.training.trainer import Progress, Trainer

    ranks = Ranks.join()
    board = Board(tensorboard) if tensorboard is not None and ranks.first else None
    console = Console(stderr=True, quiet=not ranks.first)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        states = bar.add_task("hidden states", total=None, note="")
        trainer = Trainer(
            chosen, out, console.print, lambda count, total: bar.update(states, advance=count, total=total), ranks
        )
        bar.remove_task(states)
        steps = bar.add_task("training", total=len(trainer.batches), completed=trainer.step, note="")
        tokens = 0
        if board is not None:
            board.begin(trainer.step)

        def shown(progress: Progress) -> None:
            nonlocal tokens
            tokens += progress.tokens
            depths = " ".join(f"{share:.2f}" for share in progress.acceptance)
            seconds = max(trainer.seconds, 1e-9)
            bar.update(
                steps,
                completed=progress.step,
                note=f"loss {progress.loss:.3f}  trained {depths}  {tokens / seconds:.0f} tok/s",
            )
            if board is not None:
                board.show(progress)
            if progress.evaluation:
                console.print(f"step {progress.step}: {_line(progress.evaluation)}")

        final = trainer.run(shown)
        ranks.leave()
        if board is not None:
            board.end()
    console.print(f"wrote {out}: {_line(final)}")


def read_recipe(path: Path, schema: type[Model]) -> Model:
    """A recipe of kind `schema`. Raises UserError for a missing, unreadable or malformed file or an unusable key."""
    if not path.is_file():
        raise UserError(f"recipe {path} does not exist; give a YAML file such as drafters/edsd/smollm2.yaml")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read ({error.strerror}); give a YAML file that you may read") from None
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {path} is not text ({error}); give a YAML file in UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"recipe {path} holds a {type(data).__name__}, not keys and values; see drafters/edsd/smollm2.yaml")
    return validate(schema, data, str(path))


def _line(evaluation: Evaluation) -> str:
    positions = " ".join(f"{share:.3f}" for share in evaluation.per_position)
    tau = evaluation.acceptance_length
    return f"held-out acceptance length {tau:.3f}, per position {positions}, loss {evaluation.loss:.3f}"
