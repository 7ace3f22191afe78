"""A run's figures for TensorBoard, by optimiser step."""

from pathlib import Path

from vllm_edsd.bench.report import check_place
from vllm_edsd.errors import UserError
from vllm_edsd.training.trainer import Progress


class Board:
    """Writes event files into `folder`. Raises UserError when it cannot, or when the package is missing."""

    def __init__(self, folder: Path):
        check_place(folder / "events")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"--tensorboard needs a package that is missing ({error}); run: pip install tensorboard, or leave it away"
            ) from None
        self._open, self._folder = SummaryWriter, folder

    def begin(self, step: int) -> None:
        """Opens the files of a run that has taken `step` steps; what an interrupted one wrote beyond them is hidden."""
        self._writer = self._open(str(self._folder), purge_step=step + 1, flush_secs=10)

    def show(self, progress: Progress) -> None:
        """Adds the figures of one step."""
        figures = {
            "loss": progress.loss,
            "learning_rate": progress.learning_rate,
            "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
            **{f"trained_acceptance/depth_{depth}": share for depth, share in enumerate(progress.acceptance, 1)},
        }
        if progress.evaluation:
            positions = enumerate(progress.evaluation.per_position, 1)
            figures |= {f"held_out_acceptance/position_{position}": share for position, share in positions}
            figures["held_out/acceptance_length"] = progress.evaluation.acceptance_length
            figures["held_out/loss"] = progress.evaluation.loss
        for name, value in figures.items():
            self._writer.add_scalar(name, value, progress.step)

    def end(self) -> None:
        """Writes what is left."""
        self._writer.close()
