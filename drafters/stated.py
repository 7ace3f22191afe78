"""What the config.json of any EAGLE-3 head states, as far as weights and target can be held to it."""

from pydantic import BaseModel, ConfigDict


class AuxLayers(BaseModel):
    """The target layers whose inputs a drafter reads; vLLM chooses where there is no word of them."""

    model_config = ConfigDict(extra="ignore", strict=True)

    eagle_aux_hidden_state_layer_ids: list[int] | None = None


class Stated(AuxLayers):
    """Absent keys are None: third-party heads leave out many."""

    architectures: list[str] | None = None
    hidden_size: int | None = None
    target_hidden_size: int | None = None
    vocab_size: int | None = None
    draft_vocab_size: int | None = None
    eagle_config: AuxLayers | None = None

    @property
    def layer_ids(self) -> list[int]:
        """The layers read, wherever they are stated; empty when the choice is vLLM's."""
        nested = self.eagle_config.eagle_aux_hidden_state_layer_ids if self.eagle_config else None
        return self.eagle_aux_hidden_state_layer_ids or nested or []
