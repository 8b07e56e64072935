"""The classic SASRec recipe (Kang & McAuley 2018), plainly: what `benchmarks.teachers` measures our training against.

Sampler processes draw users, pad their sequences to `max_length` and look for one unseen item a position in a Python
loop; the trainer takes such batches from a queue. Sections and equations of that paper are beside the lines. Fulfils
the teacher contract, so that it is measured as our teachers are; shares nothing else with them.

Dimensions: B users of a batch, U users of any number, T = max_length positions, D = dim
"""

import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import Queue

import numpy as np
import torch
from torch import nn

from allmrec.cf.teacher import Teacher
from allmrec.data.sequences import Sequences

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # inputs, targets, negatives: int64 (B, T) each


@dataclass(frozen=True)
class Recipe:
    """The paper's settings for sparse data (sections III and IV-D)."""

    dim: int = 50
    blocks: int = 2
    heads: int = 1
    max_length: int = 50
    dropout: float = 0.5
    batch_size: int = 128
    learning_rate: float = 0.001
    samplers: int = 2  # processes that draw batches
    threads: int = 2  # of torch, at most: as many as train fastest


class SASRecReference(Teacher):
    """Self-attention over the sequence out of torch's own modules (section III)."""

    def __init__(self, recipe: Recipe, num_items: int):
        super().__init__()
        self.recipe = recipe
        dim, blocks = recipe.dim, range(recipe.blocks)
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.positions = nn.Embedding(recipe.max_length, dim)
        self.dropout = nn.Dropout(recipe.dropout)
        self.attention_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in blocks)
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(dim, recipe.heads, recipe.dropout, batch_first=True) for _ in blocks
        )
        self.forward_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in blocks)
        self.forwards = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(recipe.dropout), nn.Linear(dim, dim))
            for _ in blocks
        )
        self.norm = nn.LayerNorm(dim)
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.xavier_normal_(weight)
        with torch.no_grad():
            self.items.weight[0] = 0

    @property
    def item_embeddings(self) -> torch.Tensor:
        return self.items.weight

    def forward(self, items_BT: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, T, D) of left-padded sequences."""
        length = items_BT.shape[1]
        real_BT1 = (items_BT > 0)[:, :, None]
        future_TT = torch.ones(length, length, dtype=torch.bool).triu(1)
        x_BTD = self.dropout(self.items(items_BT) + self.positions(torch.arange(length))) * real_BT1  # equation 1
        layers = zip(self.attention_norms, self.attentions, self.forward_norms, self.forwards, strict=True)
        for attention_norm, attention, forward_norm, forward in layers:
            query_BTD = attention_norm(x_BTD)
            mixed_BTD, _ = attention(query_BTD, query_BTD, query_BTD, attn_mask=future_TT, need_weights=False)
            x_BTD = x_BTD + self.dropout(mixed_BTD)  # equations 2 and 3, section III-B
            x_BTD = (x_BTD + self.dropout(forward(forward_norm(x_BTD)))) * real_BT1  # equation 4
        return self.norm(x_BTD)

    def loss(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor, negatives_BT: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy of the next item and of one unseen item, mean over real positions (section III-E)."""
        x_BTD, real_BT = self(inputs_BT), targets_BT > 0
        positive = (x_BTD * self.items(targets_BT)).sum(-1)[real_BT]
        negative = (x_BTD * self.items(negatives_BT)).sum(-1)[real_BT]
        bce = nn.functional.binary_cross_entropy_with_logits
        return bce(positive, torch.ones_like(positive)) + bce(negative, torch.zeros_like(negative))

    @torch.inference_mode()
    def represent(self, histories: Sequences) -> torch.Tensor:
        """The state at the newest item (section III-D), by which equation 6 scores items."""
        items_UT = torch.from_numpy(histories.padded(self.recipe.max_length)).long()
        return torch.cat([self(items_BT)[:, -1] for items_BT in items_UT.split(1024)])


class ReferenceTraining:
    """Trains epoch by epoch; `seconds` and `positions` count what training alone took, and what it predicted."""

    def __init__(self, recipe: Recipe, sequences: Sequences, num_items: int, drawable: np.ndarray, seed: int):
        """
        Args:
            sequences: the training part of everyone's history (`Sequences.read_train`).
            drawable: `Catalogue.drawable`, which negatives come from.
        """
        self.recipe, self.drawable, self.seed = recipe, drawable.tolist(), seed
        self.histories = [part.tolist() for part in np.split(sequences.items, sequences.offsets[1:-1]) if len(part) > 1]
        torch.manual_seed(seed)
        self.model = SASRecReference(recipe, num_items)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98))
        self.seconds, self.positions = 0.0, 0

    def epochs(self, count: int) -> Iterator[float]:
        """The mean loss of each epoch, which is users / batch_size batches. The clock stops between epochs."""
        threads = torch.get_num_threads()
        with self._samplers() as queue:
            torch.set_num_threads(self._fastest_threads(queue))
            for _ in range(count):
                yield self._epoch(queue)
        torch.set_num_threads(threads)

    def _fastest_threads(self, queue: "Queue[Batch]", trials: int = 10) -> int:
        """Matrices as small as these do not always gain by a second thread. Tried before the clock runs."""
        seconds = {}
        for threads in (1, *range(1, self.recipe.threads + 1)):  # the first round only warms up
            torch.set_num_threads(threads)
            started = time.perf_counter()
            for _ in range(trials):
                self.model.loss(*_next(queue)).backward()
            seconds[threads] = time.perf_counter() - started
        return min(seconds, key=lambda threads: seconds[threads])

    def _epoch(self, queue: "Queue[Batch]") -> float:
        started, total, batches = time.perf_counter(), 0.0, max(1, len(self.histories) // self.recipe.batch_size)
        self.model.train()
        for _ in range(batches):
            inputs_BT, targets_BT, negatives_BT = _next(queue)
            loss = self.model.loss(inputs_BT, targets_BT, negatives_BT)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            total += loss.item()
            self.positions += int((targets_BT > 0).sum())
        self.seconds += time.perf_counter() - started
        return total / batches

    @contextmanager
    def _samplers(self) -> Iterator["Queue[Batch]"]:
        processes = multiprocessing.get_context("spawn")
        queue: Queue[Batch] = processes.Queue(maxsize=10 * self.recipe.samplers)
        workers = [
            processes.Process(
                target=_sample_forever,
                args=(queue, self.histories, self.drawable, self.recipe, self.seed * 1000 + number),
                daemon=True,
            )
            for number in range(self.recipe.samplers)
        ]
        for worker in workers:
            worker.start()
        try:
            yield queue
        finally:
            for worker in workers:
                worker.terminate()
                worker.join()


def _next(queue: "Queue[Batch]") -> list[torch.Tensor]:
    return [torch.from_numpy(part) for part in queue.get(timeout=300)]  # samplers that died send nothing


def sample_batch(histories: list[list[int]], drawable: list[int], recipe: Recipe, draw: random.Random) -> Batch:
    """Users drawn with replacement, one after another."""
    inputs, targets, negatives = (np.zeros((recipe.batch_size, recipe.max_length), dtype=np.int64) for _ in range(3))
    for row in range(recipe.batch_size):
        history = draw.choice(histories)
        seen, column, following = set(history), recipe.max_length - 1, history[-1]
        for item in reversed(history[:-1]):
            inputs[row, column], targets[row, column] = item, following
            negatives[row, column] = unseen_item(seen, drawable, draw)
            following, column = item, column - 1
            if column < 0:
                break
    return inputs, targets, negatives


def unseen_item(seen: set[int], drawable: list[int], draw: random.Random) -> int:
    """Draw until the user has not seen it."""
    assert len(seen) < len(drawable), "some item is unseen"
    item = draw.choice(drawable)
    while item in seen:
        item = draw.choice(drawable)
    return item


def _sample_forever(
    queue: "Queue[Batch]", histories: list[list[int]], drawable: list[int], recipe: Recipe, seed: int
) -> None:
    draw = random.Random(seed)
    while True:
        queue.put(sample_batch(histories, drawable, recipe, draw))
