"""What LLM-SRec costs beside the LLM's layers alone on the same tokens, which nothing can leave out.

Of ranking these go forward, of a training step forward and back to the inputs. Knows how each is run; times are the
callers' business.

Dimensions: B cases, C candidates (the target first), T tokens, H token dimension
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from allmrec.cf.teacher import load_teacher
from allmrec.core.workspace import open_workspace
from allmrec.data.cases import Cases
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences
from allmrec.llm.batches import padded_tokens, take, token_budget_batches
from allmrec.llm.loading import LLMConfig, load_llm, load_tokenizer, max_positions
from allmrec.llm.prompt import PromptConfig, Prompts, Titles
from allmrec.metrics import METRICS, evaluate_scores
from allmrec.model import ALLMRec
from allmrec.readout.examples import ReadoutExamples
from allmrec.readout.network import ReadoutConfig, fresh_readout
from allmrec.readout.prompts import ReadoutPrompts
from allmrec.readout.teacher import LLMSRec
from allmrec.readout.training import ReadoutTraining
from benchmarks.decoding_methods import Chosen
from benchmarks.layers_alone import hidden_states

LLM_SREC, CANDIDATES, READOUT_LAYERS = "LLM-SRec, 200 candidates", 200, "LLM-SRec, the LLM's layers alone"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class ReadoutRanking:
    """Ranks as the nightly run does. A bundle without LLM-SRec gets one that was not trained, which costs the same."""

    def __init__(self, model: ALLMRec, seed: int):
        self.model, self.seed = model, seed
        self.trained = "llm-srec" in model.bundle.systems
        self.system = model.llm_srec if self.trained else _untrained(model, seed)
        self.name = LLM_SREC if self.trained else f"{LLM_SREC}, untrained"

    def rank(self, cases: Cases) -> Chosen:
        """Scores of `CANDIDATES`; what is hit is the case's target among its own candidates."""
        old = self.system
        # Another one, for it remembers the users that it has read.
        parts = (old.prompts, old.items_NK, old.item_embeddings, old.budget.tokens)
        system = LLMSRec(old.llm, old.readout, *parts)
        others = CANDIDATES - cases.candidates_BC.shape[1]
        drawn = np.random.default_rng(self.seed).integers(1, len(old.item_embeddings), (len(cases), max(others, 0)))
        wide_BC = torch.from_numpy(np.concatenate([cases.candidates_BC, drawn], axis=1)).long()
        with torch.inference_mode():
            x_BV = system.represent(cases.histories)
            score_BC = system.scores(x_BV, wide_BC.to(x_BV.device)).cpu().numpy()
        own_BC = score_BC[:, : cases.candidates_BC.shape[1]]
        hit_B = evaluate_scores(own_BC, cases.candidates_BC)[:, METRICS.index("hit@1")]
        return Chosen(hit_B, system.tokens, system.padding, 0)

    @torch.inference_mode()
    def layers(self, cases: Cases) -> int:
        """The LLM's layers on the same tokens, in the same batches; returns how many."""
        shown = cases.histories.last(self.system.prompts.users.config.max_history)
        prompts = self.system.prompts.of_users(shown.take(np.flatnonzero(shown.lengths)))
        for rows in token_budget_batches(prompts.lengths + 1, self.system.budget.tokens):
            read_by_layers(self.model.llm, take(prompts, rows), int(prompts.lengths[rows].max()) + 1)
        return len(prompts.tokens) + len(prompts)


class ReadoutSteps:
    """Training steps over one prepared workspace with its teacher, and the layers alone on the same passes."""

    def __init__(self, workspace: Path, llm: LLMConfig, prompt: PromptConfig, config: ReadoutConfig):
        opened = open_workspace(str(workspace))
        catalogue, model, tokenizer = Catalogue.read(opened.items), load_llm(llm).to(DEVICE), load_tokenizer(llm)
        titles = Titles.tokenise(catalogue.titles, tokenizer, prompt.max_title_tokens)
        prompts = ReadoutPrompts(prompt, tokenizer, titles, max_positions(model))
        sequences = Sequences.read_train(opened.sequences)
        self.config, self.examples = config, ReadoutExamples(config, sequences, prompts, 0, catalogue.drawable)
        teacher = load_teacher(opened.teacher).to(DEVICE)
        items_ND = teacher.item_embeddings.detach()
        self.training = ReadoutTraining(
            config, llm, "replicated", model, teacher, items_ND, self.examples, device=DEVICE
        )

    def step(self, number: int) -> None:
        self.training.train_step(*self.examples.global_batch(0, number, self.config.batch_size))

    def layers(self, number: int) -> None:
        examples, prompts = self.examples.global_batch(0, number, self.config.batch_size)
        for one in self.training.passes(examples, prompts):
            read_by_layers(self.training.engine.module.llm, one.prompts, one.padded // len(one.prompts), backward=True)


def read_by_layers(llm: Any, prompts: Prompts, width: int, backward: bool = False) -> None:
    """Prompts padded to that many tokens, forward, or forward and back to the inputs."""
    hidden_BTH = hidden_states(llm, padded_tokens(prompts, width, 0), gradients=backward)
    if backward:
        hidden_BTH.backward(torch.randn_like(hidden_BTH))


def _untrained(model: ALLMRec, seed: int) -> LLMSRec:
    """Its items have random vectors."""
    items_ND, config = model.teacher.item_embeddings, ReadoutConfig()
    embeddings_TH = model.llm.get_input_embeddings().weight
    readout = fresh_readout(config, items_ND, embeddings_TH, seed).requires_grad_(False)
    prompts = ReadoutPrompts(model.bundle.prompt, model.tokenizer, model.titles, max_positions(model.llm))
    vectors_NV = torch.randn(len(items_ND), config.dim, generator=torch.Generator().manual_seed(seed))
    return LLMSRec(model.llm, readout, prompts, items_ND, vectors_NV, model.config.tokens_per_batch).to(model.device)
