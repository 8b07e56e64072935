"""The bidirectional encoder that reads sentences: a pretrained one, or a small fresh BERT.

Any model of transformers with bidirectional attention that takes `inputs_embeds`: BERT, RoBERTa, MPNet, Longformer and
others. Only safetensors are read, and no code that comes with a model is run.

Dimensions: B texts, T tokens, H of the token embeddings, D of the states
"""

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from allmrec.core.pretrained import model_folder, refuse_incomplete_encoder
from allmrec.recformer.config import ENCODER, RecformerConfig

_MOST_TOKENS = 1024  # that are read by default (section 3.1.4)
_WINDOW = 64  # of an encoder whose tokens attend to their neighbours, at most (section 3.1.4)
_FRESH = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
_FRESH_SPREAD = 128**-0.5  # of its weights; with BERT's 0.02 all texts would start with nearly the same vector
_FRESH_TOKENS = 512  # positions of the fresh BERT by default


def load_encoder(config: RecformerConfig) -> tuple[Any, Path]:
    """The configured encoder in eval mode, and its folder.

    Raises:
        ValueError: the model is missing or incomplete, is not a bidirectional encoder, or has too few positions.
    """
    from transformers import AutoModel

    name = f"{ENCODER} {config.encoder!r}"
    folder = model_folder(config.encoder or "", config.revision, ENCODER)
    encoder, found = AutoModel.from_pretrained(
        folder,
        config=_settings(name, folder),
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are listed
    )
    refuse_incomplete_encoder(name, encoder, found)
    if not reads_ahead(without_pooler(encoder)):
        raise _refused(name, f"{type(encoder).__name__} reads from left to right, or other inputs than texts")
    max_tokens(config, encoder)
    return encoder, folder


def fresh_encoder(config: RecformerConfig, vocabulary: int, seed: int) -> Any:
    """A small BERT in eval mode, drawn from `seed` alone; torch's global generator is left as it was."""
    from transformers import AutoConfig

    positions = config.max_tokens or _FRESH_TOKENS
    settings = AutoConfig.for_model(
        "bert",
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        pad_token_id=None,
        initializer_range=_FRESH_SPREAD,
        **_FRESH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(settings)


def build_encoder(settings: Any) -> Any:
    """An encoder of this config of transformers, in eval mode; weights are drawn from torch's global generator."""
    from transformers import AutoModel

    return without_pooler(AutoModel.from_config(settings, dtype=torch.float32))


def without_pooler(encoder: Any) -> Any:
    """In eval mode, without the weights after the last hidden state."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder.eval()


def max_tokens(config: RecformerConfig, encoder: Any) -> int:
    """Number of tokens of a history that are read. Raises ValueError if the encoder has fewer positions."""
    positions = positions_of(encoder)
    wanted = config.max_tokens or min(positions, _MOST_TOKENS)
    if wanted > positions:
        raise ValueError(
            f"{ENCODER} {config.encoder!r} takes {positions} tokens, and baselines.recformer.max_tokens is {wanted}; "
            "lower it to that, or name an encoder with more positions, such as a Longformer"
        )
    return wanted


def positions_of(encoder: Any) -> int:
    """The most tokens that it supports. Positions start after a table's padding entry (RoBERTa)."""
    tables = [part for name, part in encoder.named_modules() if name.endswith("position_embeddings")]
    reserved = max((table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None)), default=0)
    positions = int(encoder.config.max_position_embeddings) - reserved
    return positions - positions % _window(encoder.config)


def first_states(encoder: Any, embeds_BTH: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The last state of the first token, which attends to all others: (B, D).

    Args:
        embeds_BTH: of tokens; the encoder adds positions and applies LayerNorm.
        mask_BT: int64, 1 for tokens, 0 for padding behind them.
    """
    ragged = -embeds_BTH.shape[1] % _window(encoder.config)
    embeds_BTH, mask_BT = F.pad(embeds_BTH, (0, 0, 0, ragged)), F.pad(mask_BT, (0, ragged))
    options = {}
    if _window(encoder.config) > 1:
        options["global_attention_mask"] = F.one_hot(torch.zeros_like(mask_BT[:, 0]), mask_BT.shape[1])
    states_BTD: torch.Tensor = encoder(inputs_embeds=embeds_BTH, attention_mask=mask_BT, **options).last_hidden_state
    return states_BTD[:, 0]


@torch.no_grad()
def reads_ahead(encoder: Any) -> bool:
    """Whether the first token's state depends on what follows it."""
    try:
        dim = encoder.get_input_embeddings().embedding_dim
        embeds_BTH = torch.randn(2, 2, dim, generator=torch.Generator().manual_seed(0))
        embeds_BTH[1, 0] = embeds_BTH[0, 0]
        one_D, other_D = first_states(encoder, embeds_BTH, torch.ones(2, 2, dtype=torch.int64))
    except (AttributeError, NotImplementedError, TypeError, ValueError):  # it needs other inputs
        return False
    return not torch.equal(one_D, other_D)


def _settings(name: str, folder: Path) -> Any:
    """The config of the encoder in a folder, with narrow windows where it attends to neighbours."""
    from transformers import AutoConfig

    try:
        settings = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise _refused(name, str(error).strip().splitlines()[0]) from None
    if settings.is_encoder_decoder:
        raise _refused(name, f"{settings.model_type} needs a decoder")
    window = getattr(settings, "attention_window", None)
    if window is not None:
        layers = window if isinstance(window, list) else [window] * settings.num_hidden_layers
        settings.attention_window = [min(one, _WINDOW) for one in layers]
    return settings


def _refused(name: str, why: str) -> ValueError:
    return ValueError(
        f"{name} is no bidirectional encoder of transformers ({why}); name one, such as a BERT, a RoBERTa or a "
        "Longformer, or set it to null for a small fresh one"
    )


def _window(settings: Any) -> int:
    """The width of a batch must be a multiple of this."""
    return max(getattr(settings, "attention_window", None) or [1])
