"""Stage-2 as the paper describes it, without optimisations: what `allmrec.projection` is measured against.

Every prompt is written as text in every step and tokenised then; a batch is padded to its longest prompt as the users
come; and the LLM computes logits at every position, for a loss that looks at the answers alone. The LLM is frozen and
the mathematics are the same (equations 7 and 8), so the losses must be equal.

Dimensions: B prompts, T tokens, H token dimension, V vocabulary
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from allmrec.cf.teacher import Teacher
from allmrec.llm.prompt import PromptConfig
from allmrec.projection.examples import Examples
from allmrec.projection.projectors import Projectors

_IGNORED = -100  # labels that do not count, as in F.cross_entropy


class ReferenceStage2:
    """Steps of Stage-2 on a batch of examples in the order given.

    Args:
        titles: strings by item index.
    """

    def __init__(
        self,
        llm: Any,
        tokenizer: Any,
        projectors: Projectors,
        teacher: Teacher,
        e_NJ: torch.Tensor,
        examples: Examples,
        titles: list[str],
        prompt: PromptConfig,
        learning_rate: float,
    ):
        self.llm, self.tokenizer, self.projectors, self.teacher = llm, tokenizer, projectors, teacher
        self.e_NJ, self.examples, self.titles, self.prompt = e_NJ, examples, titles, prompt
        self.optimiser = torch.optim.Adam(projectors.parameters(), lr=learning_rate)
        self.read = self.padded = 0

    def step(self, examples: np.ndarray, epoch: int) -> float:
        """Returns the loss: the mean over the batch's target tokens."""
        loss = self.loss(examples, epoch)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.projectors.parameters(), 1.0)
        self.optimiser.step()
        return loss.item()

    def loss(self, examples: np.ndarray, epoch: int) -> torch.Tensor:
        histories, candidates = self.examples.histories(examples), self.examples.candidates(examples, epoch)
        user_BH = self.projectors.user(self.teacher.represent(histories).clone()).to(self.llm.dtype)
        embed, rows, labels = self.llm.get_input_embeddings(), [], []
        for row, example in enumerate(examples):
            history = histories.items[histories.offsets[row] : histories.offsets[row + 1]].tolist()
            prompt_TH = self._prompt(user_BH[row], history[-self.prompt.max_history :], candidates[row].tolist(), embed)
            answer = [*self._title(int(self.examples.targets[example])), self.tokenizer.eos_token_id]
            rows.append(torch.cat([prompt_TH, embed(self._tensor(answer))]))
            labels.append(self._tensor([_IGNORED] * len(prompt_TH) + answer))
        embeds_BTH = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        labels_BT = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=_IGNORED)
        mask_BT = nn.utils.rnn.pad_sequence([torch.ones(len(row), device=row.device) for row in rows], batch_first=True)
        self.read += sum(len(row) for row in rows)
        self.padded += mask_BT.numel()
        logits_BTV = self.llm(inputs_embeds=embeds_BTH, attention_mask=mask_BT).logits
        return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten())

    def _prompt(self, user_H: torch.Tensor, history: list[int], candidates: list[int], embed: nn.Module) -> Any:
        """Embeddings (T, H) of the prompt of Figure 3, text piece by text piece between the soft tokens."""
        c = self.prompt
        begin = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
        parts = [embed(self._tensor(begin)), user_H[None]]
        parts.append(embed(self._ids(f" is a user representation. This user has {c.verb_past}")))
        parts += self._listed(history, embed)
        parts.append(
            embed(
                self._ids(
                    f" in the past. Recommend a {c.noun} for this user to {c.verb} next from the following set of "
                    f"{c.noun} titles,"
                )
            )
        )
        parts += self._listed([item for item in candidates if item], embed)
        parts.append(embed(self._ids(". The recommendation is")))
        return torch.cat(parts)

    def _listed(self, items: list[int], embed: nn.Module) -> list[torch.Tensor]:
        parts = []
        for place, item in enumerate(items):
            if place:
                parts.append(embed(self._ids(",")))
            parts.append(embed(self._tensor(self._title(item))))
            parts.append(self.projectors.item(self.e_NJ[item])[None].to(self.llm.dtype))
        return parts

    def _title(self, item: int) -> list[int]:
        text = " " + self.titles[item]
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids[: self.prompt.max_title_tokens]

    def _ids(self, text: str) -> torch.Tensor:
        return self._tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _tensor(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.e_NJ.device)
