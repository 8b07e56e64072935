"""Where F_U and F_I start from: `projection.start`.

Ordinary weights are drawn, and all that training adds is seen beside them. The teacher's start gives the LLM the
teacher's score before any training; its result says little about training, and it is a choice by name.

Dimensions: B users, I items, N = n + 1 items (0 is padding), D = teacher's dim, J = joint dim, H = token dim of the
LLM, T tokens of its vocabulary, K pairs of hidden units
"""

import numpy as np
import torch
from torch import nn

from allmrec.cf.teacher import Teacher
from allmrec.core.hashing import Draw, draws, key64
from allmrec.core.rows import Table
from allmrec.projection.examples import Examples
from allmrec.projection.projectors import ProjectionConfig, Projectors, fresh_projectors

_SAMPLE = 4096  # users and items that the start is scaled or fitted to


def start(
    config: ProjectionConfig,
    teacher: Teacher,
    examples: Examples,
    e_NJ: Table,
    uses_text_N: torch.Tensor,
    token_dim: int,
    norm: float,
    embeddings_TH: torch.Tensor | None = None,
) -> Projectors:
    """Projectors before any step, on the CPU: by the seed and a sample of users and items, drawn by hash.

    Args:
        e_NJ: what F_I projects, by item index.
        uses_text_N: bool, of the items that it knows by their texts alone; E_i is not fitted to these.
        norm: root mean square norm of the soft tokens.
        embeddings_TH: the LLM's token embeddings, for `start: vocabulary` and `spread`.

    Raises:
        ValueError: an input is NaN or inf; or `start: teacher` or the like where the teacher's score is no product,
            or no item is shown by its E_i.
    """
    x_BD = teacher.represent(examples.sample(_SAMPLE, key64(examples.seed, Draw.PROJECTION_START_USERS))).cpu()
    projectors = fresh_projectors(x_BD.shape[1], e_NJ.shape[1], token_dim, examples.seed, config.norm_layer)
    shown_N = torch.arange(len(e_NJ)) > 0
    if config.user_input == "choice" and not teacher.scores_by_product():
        raise ValueError(
            f"projection.user_input: choice is a mean of E_i, and {type(teacher).__name__} does not score by the "
            "product with these; set user_input: representation"
        )
    if config.start != "ordinary":
        shown_N &= ~uses_text_N
        _refuse_what_has_no_product(config.start, teacher, shown_N)
    items = shown_N.nonzero()[:, 0].numpy()
    items = items[_drawn(items.astype(np.uint64), key64(examples.seed, Draw.PROJECTION_START_ITEMS))]
    e_IJ, items_ID = e_NJ[items].cpu(), teacher.item_embeddings.detach()[items].cpu()
    for name, rows in (("user representations", x_BD), ("joint embeddings", e_IJ), ("item embeddings", items_ID)):
        if not rows.isfinite().all():
            raise ValueError(f"the {name} hold NaN or inf; run train-cf and train-alignment again")
    users_BD = items_ID if config.user_input == "choice" else x_BD  # choices are between them
    if config.start == "ordinary":
        start_ordinary(projectors, users_BD, e_IJ, norm)
    elif config.start == "teacher":
        start_as_teacher(projectors, users_BD, e_IJ, items_ID, norm)
    else:
        assert embeddings_TH is not None, "the start among the LLM's tokens needs them"
        tokens_TH = embeddings_TH.detach().float().cpu()
        if config.start == "vocabulary":
            basis_HD = widest_directions(tokens_TH, x_BD.shape[1])
        else:
            basis_HD = spread_directions(tokens_TH, items_ID, examples.seed)
        start_among_tokens(projectors, users_BD, e_IJ, items_ID, norm, tokens_TH, basis_HD)
    for gain in (module.weight for module in projectors.modules() if isinstance(module, nn.RMSNorm)):
        nn.init.constant_(gain, norm / token_dim**0.5)
    return projectors


@torch.no_grad()
def start_ordinary(projectors: Projectors, x_BD: torch.Tensor, e_IJ: torch.Tensor, norm: float) -> None:
    """Keep the weights as they were drawn, except for one factor per network: soft tokens get RMS norm `norm`."""
    for network, inputs in ((projectors.user, x_BD), (projectors.item, e_IJ)):
        first, activation, last = _layers(network)
        scale = norm / last(activation(first(inputs))).square().sum(1).mean().sqrt().clamp_min(1e-12)
        last.weight.mul_(scale)
        last.bias.mul_(scale)


@torch.no_grad()
def start_among_tokens(
    projectors: Projectors,
    x_BD: torch.Tensor,
    e_IJ: torch.Tensor,
    items_ID: torch.Tensor,
    norm: float,
    tokens_TH: torch.Tensor,
    basis_HD: torch.Tensor,
) -> None:
    """As `start_as_teacher`, in the directions of `basis_HD` and around the LLM's mean token."""
    mean_H = tokens_TH.mean(0)
    spread = max(norm**2 - float(mean_H.square().sum()), (norm / 2) ** 2) ** 0.5
    start_as_teacher(projectors, x_BD, e_IJ, items_ID, spread, basis_HD)
    for network in (projectors.user, projectors.item):
        _layers(network)[2].bias.add_(mean_H)


@torch.no_grad()
def widest_directions(tokens_TH: torch.Tensor, dim: int) -> torch.Tensor:
    """The `dim` orthonormal directions in which the LLM's tokens differ most, (H, D).

    So soft tokens are where an LLM that was trained on text has learnt to tell tokens apart.
    """
    deviation_TH = tokens_TH - tokens_TH.mean(0)
    _, vectors_HH = torch.linalg.eigh((deviation_TH.T @ deviation_TH).double())
    basis_HD = vectors_HH.flip(1)[:, :dim]
    largest_1D = basis_HD.gather(0, basis_HD.abs().argmax(0, keepdim=True))
    return (basis_HD * largest_1D.sign()).float()  # or their signs were the linear algebra library's choice


@torch.no_grad()
def spread_directions(tokens_TH: torch.Tensor, items_ID: torch.Tensor, seed: int) -> torch.Tensor:
    """Drawn directions with the tokens' spread, (H, D), behind a whitening of E_i.

    E_i differ in a few directions by far more than in the others, and so would soft tokens; an LLM that looks for a
    token like another finds the right one where tokens have little in common.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn_HD = torch.randn(tokens_TH.shape[1], items_ID.shape[1], generator=generator)
    deviation_ID = (items_ID - items_ID.mean(0)).double()
    values_D, vectors_DD = torch.linalg.eigh(deviation_ID.T @ deviation_ID)
    whitening_DD = vectors_DD @ torch.diag(values_D.clamp_min(1e-6 * float(values_D.max())) ** -0.5) @ vectors_DD.T
    return tokens_TH.std(0)[:, None] * (drawn_HD @ whitening_DD.float())


@torch.no_grad()
def start_as_teacher(
    projectors: Projectors,
    x_BD: torch.Tensor,
    e_IJ: torch.Tensor,
    items_ID: torch.Tensor,
    norm: float,
    basis_HD: torch.Tensor | None = None,
) -> None:
    """Make both networks the teacher's vectors, repeated along the token, at mean zero and RMS norm `norm`.

    The teacher scores by s(x^u, E_i). With one map for both (for items behind the least squares fit of E_i by e_i) the
    soft tokens' product is that score, up to the means, and they have the LLM's tokens' scale, not the teacher's.

    Args:
        items_ID: E_i of the items of `e_IJ`.
        basis_HD: directions of the tokens in the place of the repetition; products stay if they are orthonormal.
    """
    deviation_IJ = (e_IJ - e_IJ.mean(0)).double()
    to_teacher_JD = torch.linalg.lstsq(deviation_IJ, (items_ID - items_ID.mean(0)).double(), driver="gelsd")[0]
    first, _, last = _layers(projectors.user)
    half, dim = first.out_features // 2, first.in_features
    # Orthonormal, so that the product stays what it is, and whole in any D dimensions in a row: what reads a part
    # of a token's, as the stand-in LLM does, would find it blurred under a random map.
    left, _, right = torch.linalg.svd(first.weight[:half], full_matrices=False)
    map_KD = left @ right
    out_HK = map_KD.T[torch.arange(last.out_features) % dim] if basis_HD is None else basis_HD @ map_KD.T
    for network, inputs, map_K in (
        (projectors.user, x_BD, map_KD),
        (projectors.item, e_IJ, map_KD @ to_teacher_JD.T.to(map_KD.dtype)),
    ):
        first, activation, last = _layers(network)
        for weight in (first.weight, first.bias, last.weight, last.bias):
            weight.zero_()
        # GELU(z) - GELU(-z) = z: pairs of hidden units start as a linear map.
        first.weight[: 2 * half] = torch.cat([map_K, -map_K])
        last.weight[:, : 2 * half] = torch.cat([out_HK, -out_HK], dim=1)
        _standardise(first, inputs, first.out_features**0.5)
        _standardise(last, activation(first(inputs)), norm)


def _refuse_what_has_no_product(start: str, teacher: Teacher, shown_N: torch.Tensor) -> None:
    kind = type(teacher).__name__
    if not shown_N.any():
        raise ValueError(f"projection.start: {start} fits E_i, and {kind} has none for any item; set start: ordinary")
    if not teacher.scores_by_product():
        raise ValueError(
            f"projection.start: {start} starts from the product of x^u and E_i, and {kind} does not score by it; set "
            "start: ordinary"
        )


def _drawn(hashes: np.ndarray, key: np.uint64) -> np.ndarray:
    """Places of a sample of the rows, int64."""
    return draws(hashes, key, 1)[:, 0].argsort(kind="stable")[:_SAMPLE]


def _layers(network: nn.Sequential) -> tuple[nn.Linear, nn.Module, nn.Linear]:
    """Without the norm layer."""
    first, activation, last, *_ = network
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    return first, activation, last


def _standardise(layer: nn.Linear, inputs: torch.Tensor, norm: float) -> None:
    """Fold a shift and a scale into `layer`: its outputs then have mean zero and root mean square norm `norm`."""
    outputs = layer(inputs)
    mean = outputs.mean(0)
    scale = norm / (outputs - mean).square().sum(1).mean().sqrt().clamp_min(1e-12)
    layer.bias.copy_((layer.bias - mean) * scale)
    layer.weight.mul_(scale)
