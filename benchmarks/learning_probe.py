"""What a frozen LLM does with soft tokens that nothing has trained: whether there is anything for projectors to find.

Every item gets a random soft token around the LLM's mean token, in its tokens' spread. Then the user's is the target's
own, or more and less like it; or one token is optimised for its prompt alone, which no projector can do better. And the
priors: what the LLM prefers without soft tokens, by place and by title. And with the tokens that Stage-2 starts from:
how like the target's token the user's is, and what the LLM does if it is told the teacher's choice ever more plainly.

Dimensions: B users, C candidates, H token dim, N = n + 1 items (0 is padding)
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from allmrec.cf.training import ValidationCases
from allmrec.core.hashing import Draw, key64
from allmrec.llm.batches import SoftTokens
from allmrec.llm.packed import candidate_log_p
from allmrec.llm.prompt import PromptBuilder
from allmrec.llm.ranking import Ranker
from allmrec.llm.shown_order import ShownOrder
from allmrec.llm.trie import build_tries
from benchmarks.report import Benchmark
from jobs.config import Config

_COSINES = (1.0, 0.8, 0.6, 0.4, 0.0)
_SHARPNESS = (1.0, 3.0, 10.0)  # of the softmax of the teacher's scores, in their standard deviations
_OPTIMISED, _STEPS, _RATE = 8, 20, 0.1  # users, steps of Adam, and its rate as a share of the tokens' spread


def probe(
    benchmark: Benchmark,
    name: str,
    llm: Any,
    builder_of: Callable[..., PromptBuilder],
    config: Config,
    cases: ValidationCases,
    start: SoftTokens,
    score_BC: np.ndarray,
) -> None:
    """All of it on these cases, one measurement each.

    Args:
        start: of the cases' users and of all items, as Stage-2 starts from them.
        score_BC: the teacher's, of the candidates.
    """
    builder, generator = builder_of(config), torch.Generator().manual_seed(config.seed)
    embeddings_TH = llm.get_input_embeddings().weight.float()
    spread_H, mean_H = torch.std_mean(embeddings_TH, 0)

    def drawn(count: int) -> torch.Tensor:
        """Deviations from the mean token."""
        return spread_H * torch.randn(count, len(spread_H), generator=generator)

    order = ShownOrder.draw(
        cases.histories.hashes(), key64(config.seed, Draw.PROJECTION_VALIDATION_SHOWN), cases.candidates.shape[1]
    )
    shown_BC, place_B = order.shown(cases.candidates), np.argmax(order.order_BC == 0, axis=1)
    items_NH, others_BH = drawn(len(builder.titles.lengths)), drawn(len(cases))
    targets_B = torch.from_numpy(cases.candidates[:, 0]).long()

    def measured(what: str, log_p_BC: np.ndarray, **more: float) -> None:
        chosen_B = log_p_BC.argmax(1)
        numbers = {
            "Hit@1": float((chosen_B == place_B).mean()),
            "P(target)": float(np.exp(log_p_BC[np.arange(len(place_B)), place_B]).mean()),
            "first and last place": float(np.isin(chosen_B, [0, log_p_BC.shape[1] - 1]).mean()),
        }
        benchmark.measured({"slots": name, "probe": what}, numbers | more)

    ranker = Ranker(llm, builder, config.llm.tokens_per_batch)
    for cosine in _COSINES:
        user_BH = cosine * items_NH[targets_B] + (1 - cosine**2) ** 0.5 * others_BH
        log_p_BC = ranker.log_probabilities(cases.histories, shown_BC, SoftTokens(mean_H + user_BH, mean_H + items_NH))
        measured(f"user's token has cosine {cosine} with the target's", log_p_BC)
    plain = Ranker(llm, builder_of(config, soft=False), config.llm.tokens_per_batch)
    prior_BC = plain.log_probabilities(cases.histories, shown_BC)
    measured("no soft tokens", prior_BC)
    measured("cosine 0, less the log P without soft tokens", log_p_BC - prior_BC)

    by_teacher_BC, items_BC = order.shown(score_BC), torch.from_numpy(shown_BC).long()
    measured("the teacher", by_teacher_BC - np.log(np.exp(by_teacher_BC).sum(1, keepdims=True)))
    item_NH = start.item_NH
    assert isinstance(item_NH, torch.Tensor)
    mean_item_H = item_NH[1:].mean(0)
    towards_BCH = item_NH[items_BC] - mean_item_H
    cosine_BC = torch.cosine_similarity(start.user_BH[:, None] - mean_item_H, towards_BCH, dim=2).numpy()
    of_target_B = cosine_BC[np.arange(len(place_B)), place_B]
    told = {"cosine with the target's": float(of_target_B.mean()), "± sd": float(of_target_B.std())}
    measured("the start's tokens", ranker.log_probabilities(cases.histories, shown_BC, start), **told)
    for sharpness in _SHARPNESS:
        share_BC = torch.from_numpy(sharpness * by_teacher_BC / by_teacher_BC.std()).float().softmax(1)
        mixture_BH = torch.einsum("bc,bch->bh", share_BC, towards_BCH)
        mixture_BH *= towards_BCH.norm(dim=2).mean() / mixture_BH.norm(dim=1, keepdim=True)
        log_p_BC = ranker.log_probabilities(cases.histories, shown_BC, SoftTokens(mean_item_H + mixture_BH, item_NH))
        measured(f"user's token is a mixture of the candidates', sharpness {sharpness}", log_p_BC)

    some = np.arange(min(_OPTIMISED, len(cases)))
    histories, shown_BC, place_B = cases.histories.take(some), shown_BC[some], place_B[some]
    prompts, tries = builder.build(histories, shown_BC), build_tries(builder.titles, shown_BC, builder.end)
    for which in ("user's", "target's"):
        user_BH, item_NH = mean_H + others_BH[some], mean_H + items_NH
        token = (user_BH if which == "user's" else item_NH).requires_grad_()
        optimiser = torch.optim.Adam([token], lr=_RATE * float(spread_H.mean()))
        for step in range(_STEPS + 1):
            log_p = candidate_log_p(llm, prompts, tries, SoftTokens(user_BH, item_NH), builder.end)
            if step in (0, _STEPS):
                measured(f"{which} token after {step} steps for its prompt", log_p.detach().numpy())
            optimiser.zero_grad()
            (-log_p[torch.from_numpy(some), torch.from_numpy(place_B)].sum()).backward()
            if which == "target's":  # the others stay
                kept_N1 = torch.zeros(len(item_NH), 1).index_fill(0, targets_B[some], 1.0)
                token.grad = None if token.grad is None else token.grad * kept_N1
            optimiser.step()
