"""Mixtral, OLMoE, Qwen2-MoE and GraniteMoE as EAGLE-3 targets: vLLM's own models, plus the states that a drafter reads.

Each `ForCausalLM` class is vLLM's; only the pass through its layers is ours. It computes what vLLM's computes and keeps the
asked-for states on the way. vLLM knows ours by names of their own (`hooks.lending`): without --edsd it builds its own.
"""

from collections.abc import Callable
from itertools import islice
from types import ModuleType
from unittest.mock import patch

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.models import granitemoe, mixtral, olmoe, qwen2_moe
from vllm.model_executor.models.interfaces import EagleModelMixin, SupportsEagle3
from vllm.sequence import IntermediateTensors

from vllm_edsd.engine import hooks

Hidden = torch.Tensor | IntermediateTensors | tuple[torch.Tensor, list[torch.Tensor]]


class Capturing(EagleModelMixin):
    """Before a decoder model in the order of bases: its layers, run so that `aux_hidden_state_layers` come out too.

    State i is what layer i reads, as in vLLM's Llama; with pipeline parallelism each rank hands its own to the next.
    """

    supports_aux_hidden_states_over_pp = True
    # Whether layers pass on the sum so far beside their own output, to be added in the next norm.
    separate_residual = True
    layers: nn.ModuleList
    end_layer: int
    norm: nn.Module
    embed_input_ids: Callable[[torch.Tensor | None], torch.Tensor]

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> Hidden:
        """[N] tokens, or [N, H] embeddings, to [N, H] normed states, with a list of [N, H] where any were asked for."""
        residual: torch.Tensor | None = None
        captured: list[torch.Tensor] = []
        if get_pp_group().is_first_rank:
            hidden = self.embedded(self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds)
            self._maybe_add_hidden_state(captured, self.start_layer, hidden, residual)
        else:
            assert intermediate_tensors is not None
            hidden = intermediate_tensors["hidden_states"]
            residual = intermediate_tensors["residual"] if self.separate_residual else None
        received = self.collect_remote_aux_hidden_states(intermediate_tensors)

        for number, layer in enumerate(islice(self.layers, self.start_layer, self.end_layer), self.start_layer + 1):
            if self.separate_residual:
                hidden, residual = layer(positions, hidden, residual)
            else:
                hidden = layer(positions, hidden)
            self._maybe_add_hidden_state(captured, number, hidden, residual)

        if not get_pp_group().is_last_rank:
            state = {"hidden_states": hidden} if residual is None else {"hidden_states": hidden, "residual": residual}
            return IntermediateTensors({**state, **self.pack_local_aux_hidden_states(captured)})
        normed = self.norm(hidden) if residual is None else self.norm(hidden, residual)[0]
        captured = received + captured
        return (normed, captured) if captured else normed

    def embedded(self, embeddings: torch.Tensor) -> torch.Tensor:
        """What the first layer reads, [N, H], from [N, H] embeddings."""
        return embeddings


# vLLM's models are decorated for torch.compile, and these inherit it: what is compiled is the `forward` above.
class MixtralModel(Capturing, mixtral.MixtralModel):  # type: ignore[misc]
    pass


class OlmoeModel(Capturing, olmoe.OlmoeModel):  # type: ignore[misc]
    pass


class Qwen2MoeModel(Capturing, qwen2_moe.Qwen2MoeModel):  # type: ignore[misc]
    pass


class GraniteMoeModel(Capturing, granitemoe.GraniteMoeModel):  # type: ignore[misc]
    separate_residual = False

    def embedded(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings * self.embedding_multiplier


class BuiltAround:
    """Before one of vLLM's target classes in the order of bases: it is built around `inner` instead of its own model."""

    module: ModuleType
    inner: type[Capturing]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        problem = hooks.problem(hooks.target_hooks(type(self).__name__.removeprefix("Edsd")))
        if problem is not None:
            raise ValueError(problem)
        # vLLM's class looks its inner model up in its own module.
        with patch.object(self.module, self.inner.__name__, self.inner):
            super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]


class EdsdMixtralForCausalLM(BuiltAround, mixtral.MixtralForCausalLM, SupportsEagle3):
    module, inner = mixtral, MixtralModel


class EdsdOlmoeForCausalLM(BuiltAround, olmoe.OlmoeForCausalLM, SupportsEagle3):
    module, inner = olmoe, OlmoeModel


class EdsdQwen2MoeForCausalLM(BuiltAround, qwen2_moe.Qwen2MoeForCausalLM, SupportsEagle3):
    module, inner = qwen2_moe, Qwen2MoeModel


class EdsdGraniteMoeForCausalLM(BuiltAround, granitemoe.GraniteMoeForCausalLM, SupportsEagle3):
    module, inner = granitemoe, GraniteMoeModel
