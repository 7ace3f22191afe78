"""How much KV cache a token takes."""

from transformers import PretrainedConfig


def token_bytes(config: PretrainedConfig, layers: int, element_bytes: int) -> int:
    """Bytes of the keys and values of one token in `layers` layers as wide as the model's. `config` is the text model's."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * layers * heads * width * element_bytes
