"""RECFORMER as a teacher, over every kind of encoder: what it is told counts, how it is told does not."""

import numpy as np
import torch

from allmrec.core.artifacts import writing
from allmrec.core.rows import whole
from allmrec.core.storage import open_storage
from allmrec.recformer.artifact import load_recformer, read_new_items, save_recformer
from allmrec.recformer.build import build_recformer
from allmrec.recformer.config import RecformerConfig
from allmrec.recformer.network import Recformer, read
from allmrec.recformer.sentences import Texts
from tests.cf.conftest import ragged
from tests.recformer.conftest import NUM_ITEMS, catalogue, drawn, items_table, teacher_of

USERS = ragged([[3, 1, 2], [1, 2, 3], [5], [], [7, 8, 9, 10, 11, 12], [1] * 9, [4, 6]])


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_an_item_is_a_history_of_itself_alone(system):
    items = np.arange(1, NUM_ITEMS + 1)
    close(system.represent(ragged([[item] for item in items])), system.item_embeddings[1:])
    close(system.item_embeddings[1:].norm(dim=1), torch.ones(NUM_ITEMS))
    assert system.item_embeddings[0].eq(0).all()


def test_users_together_are_represented_as_one_by_one(system):
    together = system.represent(USERS)
    for row in range(len(USERS)):
        one = USERS.take(np.array([row]))
        if one.lengths[0]:
            close(read(system.network, system.sentences, one, tokens_per_pass=1)[0], together[row])
    assert together[3].eq(0).all(), "of an empty history nothing is known"
    assert system.scores_by_product()


def test_order_counts_and_only_the_newest_items_do(system):
    x_UD = system.represent(USERS)
    assert (x_UD[0] - x_UD[1]).abs().max() > 1e-3
    longer = ragged([[11, 7, 8, 9, 10, 11, 12]])
    close(system.represent(longer)[0], x_UD[4])


def test_a_user_is_read_once_for_the_same_history(system, monkeypatch):
    system.represent(ragged([[2]]))
    counts, forward = [], Recformer.forward

    def counted(self: Recformer, texts: Texts) -> torch.Tensor:
        counts.append(len(texts.lengths))
        return forward(self, texts)

    monkeypatch.setattr(Recformer, "forward", counted)
    first = system.represent(USERS)
    assert sum(counts) == 6
    assert torch.equal(system.represent(USERS.take(np.array([4, 0]))), first[[4, 0]]) and sum(counts) == 6
    system.represent(ragged([[3, 1, 2], [2, 1, 3]]))
    assert sum(counts) == 7, "another history is another text"


def test_it_survives_the_disk_and_reads_items_that_come_later(folders, tmp_path):
    config = RecformerConfig(encoder=folders["bert"], max_items=4, max_attribute_tokens=4)
    network, sentences, tokenizer = build_recformer(config, catalogue, seed=0)
    system, other = (
        teacher_of(drawn(network), sentences),
        {name: 2 * weight for name, weight in network.state_dict().items()},
    )
    storage = open_storage(str(tmp_path))
    with writing(storage, "recformer", "test", {"baselines": {"recformer": config.model_dump(mode="json")}}) as out:
        out.add(
            save_recformer(
                storage, other, network.state_dict(), system.item_embeddings, sentences, network.encoder, tokenizer
            )
        )
    loaded = load_recformer(storage)
    assert torch.equal(loaded.item_embeddings, system.item_embeddings)
    assert not any(weight.requires_grad for weight in loaded.parameters())
    network.load_state_dict(other)
    close(loaded.represent(USERS), teacher_of(network, sentences).represent(USERS))

    later = items_table(2, title=["birch and a much longer tale", "amber tale"], description=[None, None])
    vectors_MD, words_ML = read_new_items(storage, later)
    seen_MD, seen_ML = read_new_items(storage, items_table())
    close(seen_MD, system.item_embeddings[1:])
    assert seen_ML.tolist() == whole(sentences.words_NL)[1:].tolist()
    rows_N = torch.tensor([0, 0, 7, 2])
    new_ND, new_NL = torch.zeros(4, 16), torch.zeros(4, words_ML.shape[1], dtype=torch.int32)
    new_ND[1], new_NL[1] = vectors_MD[0], words_ML[0]
    before, teacher = loaded.represent(ragged([[2, 7]])), load_recformer(storage, new_NL)
    teacher.take_items(rows_N, new_ND)
    close(teacher.item_embeddings, torch.stack([torch.zeros(16), vectors_MD[0], *system.item_embeddings[[7, 2]]]))
    close(teacher.represent(ragged([[3, 2]])), before)
    read_too = teacher.represent(ragged([[1, 3, 2]]))
    assert (read_too - before).abs().max() > 1e-4, "the new item is read in histories"
