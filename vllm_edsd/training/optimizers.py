"""What moves a drafter's weights: AdamW, or Muon for the matrices of fc and the layer beside AdamW for the rest.

Muon steps along the orthogonalised momentum of a matrix's gradient (Jordan et al. 2024), scaled to the size of AdamW's usual
steps (arXiv 2502.16982), so that one learning rate serves both. Norms and the head, a table of tokens, stay with AdamW.
"""

from torch.nn import Parameter
from torch.optim import AdamW, Muon, Optimizer

from vllm_edsd.drafters.core import Drafter

OPTIMIZERS = ("adamw", "muon")
MOMENTUM = 0.95


def optimizers(
    drafter: Drafter, name: str, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> list[Optimizer]:
    """The optimisers that share the drafter's parameters; `name` is one of OPTIMIZERS, `betas` are AdamW's."""
    matrices: list[Parameter] = []
    rest: list[Parameter] = []
    for parameter_name, parameter in drafter.named_parameters():
        hidden = parameter.ndim == 2 and not parameter_name.startswith("lm_head.")
        (matrices if name == "muon" and hidden else rest).append(parameter)
    found: list[Optimizer] = [AdamW(rest, learning_rate, betas, weight_decay=weight_decay, foreach=True)]
    if matrices:
        found.append(Muon(matrices, learning_rate, weight_decay, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"))
    return found
