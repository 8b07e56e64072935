"""Stage-2's prompts: which users, candidates and labels they hold, whatever the number of workers."""

import numpy as np
import pyarrow as pa
import pytest

from allmrec.alignment.examples import Examples as Stage1
from allmrec.alignment.network import AlignmentConfig
from allmrec.data.sequences import Sequences, offsets_of
from allmrec.llm.prompt import USER_SLOT, PromptBuilder
from allmrec.projection.examples import Examples
from tests.projection.conftest import NUM_ITEMS, NUM_USERS


@pytest.fixture(scope="module")
def examples(sequences, builder) -> Examples:
    return Examples(sequences, builder, num_candidates=5, seed=7)


def test_the_target_is_the_last_item_and_the_history_what_came_before(examples, sequences):
    assert len(examples) == NUM_USERS, "who has no history behind a target is left out"
    for user, name in enumerate(examples.sequences.user_ids.to_pylist()):
        row = sequences.user_ids.to_pylist().index(name)
        items = sequences.items[sequences.offsets[row] : sequences.offsets[row + 1]]
        assert examples.targets[user] == items[-1]
        assert examples.histories(np.array([user])).items.tolist() == items[:-1].tolist()


def test_labels_are_exactly_the_answers_tokens_and_stand_behind_their_prompts(examples, builder, tiny_tokenizer):
    users = np.arange(len(examples))
    prompts = examples.prompts(users, epoch=0)
    batch = examples.batch(users, prompts)
    for row, user in enumerate(users):
        start, end = builder.titles.offsets[examples.targets[user] :][:2]
        answer = [*builder.titles.tokens[start:end].tolist(), tiny_tokenizer.eos_token_id]
        mine = batch.target_rows == row
        assert batch.labels[mine].tolist() == answer
        prompt = prompts.tokens[prompts.offsets[row] : prompts.offsets[row + 1]].tolist()
        tokens = batch.prompts.tokens[batch.prompts.offsets[row] : batch.prompts.offsets[row + 1]].tolist()
        assert tokens == prompt + answer[:-1]
        # The first label is predicted by the prompt's last token, each other one by the label before it.
        assert batch.target_columns[mine].tolist() == list(range(len(prompt) - 1, len(tokens)))
    assert len(batch.labels) == examples.target_tokens(users)


def test_slots_keep_their_items_and_positions(examples):
    users = np.arange(len(examples))
    prompts = examples.prompts(users, epoch=0)
    batch = examples.batch(users, prompts)
    assert batch.items[0] == USER_SLOT and len(np.unique(batch.items)) == len(batch.items)
    assert batch.items[batch.prompts.slot_items].tolist() == prompts.slot_items.tolist()
    rows = prompts.slot_rows()
    assert batch.prompts.slot_rows().tolist() == rows.tolist()
    columns = batch.prompts.slot_positions - batch.prompts.offsets[rows]
    assert columns.tolist() == (prompts.slot_positions - prompts.offsets[rows]).tolist()


def test_negatives_are_items_that_may_be_drawn(sequences, builder):
    examples = Examples(sequences, builder, 5, seed=7, drawable=np.array([2, 3, 5, 7, 11], np.int32))
    candidates = examples.candidates(np.arange(NUM_USERS), 0)
    assert set(candidates[candidates != examples.targets[:, None]].tolist()) - {0} == {2, 3, 5, 7, 11}


def test_negatives_are_none_of_stage_1s(sequences, builder, teacher):
    """With one key for both, a user's unseen item of Stage-1 would be the first negative of Stage-2 in every epoch."""
    ours = Examples(sequences, builder, 5, seed=7)
    theirs = Stage1(AlignmentConfig(held_out=0), teacher, sequences, 7)
    theirs.usable[1:] = True
    users = np.flatnonzero(ours.sequences.lengths < 6)
    assert ours.sequences.user_ids.equals(theirs.sequences.user_ids)
    same = []
    for epoch in range(20):
        rows = theirs.rows(users, epoch)
        negatives = ours.negatives(users, epoch)
        same.append((rows.item_R[~rows.positive_R] == negatives[:, 0]).mean())
    assert np.mean(same) < 0.3, "of some six to ten items"


def test_candidates_hold_the_target_once_and_nothing_else_that_was_seen(examples):
    users = np.arange(len(examples))
    for epoch in range(3):
        candidates = examples.candidates(users, epoch)
        assert ((candidates == examples.targets[:, None]).sum(axis=1) == 1).all()
        for user in users:
            seen = set(examples.sequences.take(np.array([user])).items.tolist())
            negatives = set(candidates[user].tolist()) - {examples.targets[user]}
            assert len(negatives) == 4 and not negatives & seen
    assert (examples.candidates(users, 0) != examples.candidates(users, 1)).any()


def test_the_target_is_at_any_place_alike(builder):
    users = 4000
    items = np.tile(np.array([1, 2], dtype=np.int32), users)
    sequences = Sequences(pa.array([f"user-{row}" for row in range(users)]), offsets_of(np.full(users, 2)), items)
    examples = Examples(sequences, builder, num_candidates=5, seed=0)
    positions = np.nonzero(examples.candidates(np.arange(users), 0) == 2)[1]
    shares = np.bincount(positions, minlength=5) / users
    assert abs(shares - 0.2).max() < 0.03  # nearly five standard errors


def test_an_epoch_is_a_permutation_and_each_its_own(examples):
    orders = [examples.order(epoch) for epoch in range(2)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(NUM_USERS))
    assert (orders[0] != orders[1]).any()


def test_an_epochs_batches_hold_every_example_once_and_of_similar_length(examples):
    batches = [examples.global_batch(0, step, 4) for step in range(8)]
    assert sorted(np.concatenate([users for users, _ in batches]).tolist()) == list(range(NUM_USERS))
    lengths = [prompts.lengths for _, prompts in batches]
    assert sorted(len(of_batch) for of_batch in lengths) == [2, 4, 4, 4, 4, 4, 4, 4]
    together = np.concatenate(lengths)
    assert sum(len(of_batch) * of_batch.max() for of_batch in lengths) < 1.05 * together.sum()
    longest = [of_batch.max() for of_batch in lengths]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True), "but in random order"
    for users, prompts in batches:
        assert prompts.tokens.tolist() == examples.prompts(users, 0).tokens.tolist()


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("budget", [1, 200, 10_000])
def test_all_workers_passes_together_hold_every_label_once(examples, world, budget):
    users, prompts = examples.global_batch(0, 0, 7)
    whole = examples.batch(users, prompts)
    passes = [examples.passes(users, prompts, rank, world, budget) for rank in range(world)]
    assert len({len(of_worker) for of_worker in passes}) == 1
    batches = [batch for of_worker in passes for batch in of_worker]
    assert all(len(batch) == 1 or len(batch) * batch.prompts.lengths.max() <= budget for batch in batches)
    labelled = [batch for batch in batches if len(batch.labels)]
    assert sorted(np.concatenate([batch.examples for batch in labelled]).tolist()) == sorted(users.tolist())
    tokens = np.concatenate([batch.labels for batch in batches])
    assert sorted(tokens.tolist()) == sorted(whole.labels.tolist())
    for batch in labelled:  # and each as in the whole batch
        for row, user in enumerate(batch.examples):
            there = int(np.flatnonzero(users == user)[0])
            assert _tokens(batch, row) == _tokens(whole, there)


def test_all_items_as_targets(sequences, builder):
    examples = Examples(sequences, builder, 5, seed=7, targets="all")
    assert len(examples) == (sequences.lengths[2:] - 1).sum(), "all but everyone's first"
    first = examples.rows == 0
    items = examples.sequences.items[: examples.sequences.offsets[1]]
    assert examples.targets[first].tolist() == items[1:].tolist()
    for place, example in enumerate(np.flatnonzero(first), start=1):
        assert examples.histories(np.array([example])).items.tolist() == items[:place].tolist()
    candidates = examples.candidates(np.flatnonzero(first), 0)
    for row, target in zip(candidates, examples.targets[first], strict=True):
        assert set(row[row > 0].tolist()) & set(items.tolist()) == {target}, "later items are no negatives"
    assert len({tuple(sorted(set(row.tolist()) - set(items.tolist()))) for row in candidates}) > 1


def test_a_prompt_depends_on_the_user_and_not_on_the_company(examples):
    together = examples.prompts(np.array([3, 9, 4]), epoch=2)
    alone = examples.prompts(np.array([9]), epoch=2)
    assert together.tokens[together.offsets[1] : together.offsets[2]].tolist() == alone.tokens.tolist()


def test_what_over_long_prompts_lose_is_counted(sequences, examples, builder, tiny_tokenizer):
    assert set(examples.shortened().values()) == {0}
    tight = PromptBuilder(builder.config, tiny_tokenizer, builder.titles, soft=True, max_tokens=100)
    lost = Examples(sequences, tight, num_candidates=5, seed=7).shortened(epoch=1)
    prompts = tight.build(examples.histories(np.arange(NUM_USERS)), examples.candidates(np.arange(NUM_USERS), 1))
    assert lost == {"history items dropped": prompts.dropped_history, "prompts with cut titles": prompts.cut_titles}
    assert lost["history items dropped"] > 0


def test_no_user_to_learn_from_is_an_error(sequences, builder):
    with pytest.raises(ValueError, match="two training interactions"):
        Examples(sequences.take(np.array([0, 1])), builder, 5, seed=0)


def test_a_catalogue_smaller_than_the_candidates_is_shown_whole(sequences, builder):
    candidates = Examples(sequences, builder, num_candidates=20, seed=0).candidates(np.arange(NUM_USERS), 0)
    unseen = NUM_ITEMS - sequences.lengths[2:]
    assert ((candidates > 0).sum(axis=1) == unseen + 1).all()


def _tokens(batch, row):
    return batch.prompts.tokens[batch.prompts.offsets[row] : batch.prompts.offsets[row + 1]].tolist()
