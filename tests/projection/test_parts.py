"""Stage-2 on users in parts, one of which is in memory at a time."""

from itertools import chain, pairwise

import numpy as np
import pytest

from allmrec.core.hashing import key64
from allmrec.core.storage import open_storage
from allmrec.data.training_users import TrainingUsers
from allmrec.projection.examples import EXAMPLE_BYTES, Examples
from tests.data.stored_sequences import generated, in_parts, write_sequences
from tests.projection.conftest import NUM_ITEMS, NUM_USERS
from tests.projection.test_training import CONFIG, training

BATCH = 4


def epoch_of(examples: Examples, epoch: int) -> list[list[tuple[str, int]]]:
    """Users and targets of each batch, and what their prompts show."""
    found = []
    for step in range(examples.steps(BATCH)):
        rows, prompts = examples.global_batch(epoch, step, BATCH)
        ids = examples.sequences.user_ids.take(examples.rows[rows]).to_pylist()
        texts = [tokens.tolist() for tokens in np.split(prompts.tokens, prompts.offsets[1:-1])]
        found.append(list(zip(ids, examples.targets[rows].tolist(), texts, strict=True)))
    return found


@pytest.mark.parametrize("targets", ["last", "all"])
def test_each_example_is_once_in_an_epoch_and_its_prompt_the_same(sequences, builder, targets):
    whole, parts = (Examples(users, builder, 5, 7, targets) for users in (sequences, in_parts(sequences, 3)))
    assert len(parts) == len(whole) and parts.steps(BATCH) >= whole.steps(BATCH)
    batches = epoch_of(parts, 0)
    assert sorted(chain(*batches)) == sorted(chain(*epoch_of(whole, 0)))
    part_of = {user: part for part in range(3) for user in parts.users.parts[part]().user_ids.to_pylist()}
    of_batch = [{part_of[user] for user, *_ in batch} for batch in batches]
    assert all(len(found) == 1 for found in of_batch), "a batch is of one part"
    assert sum(one != other for one, other in pairwise(of_batch)) == 2, "one part after another"
    assert len({tuple(parts.users.order(key64(7, epoch))) for epoch in range(9)}) > 1


def test_a_step_is_found_again_whatever_was_read_before(sequences, builder):
    parts = Examples(in_parts(sequences, 3), builder, 5, 7)
    batches = epoch_of(parts, 1)
    for step in (len(batches) - 1, 0, 4):
        examples = Examples(in_parts(sequences, 3), builder, 5, 7)
        rows, _ = examples.global_batch(1, step, BATCH)
        ids = examples.sequences.user_ids.take(examples.rows[rows]).to_pylist()
        assert ids == [user for user, *_ in batches[step]]


def test_what_is_said_of_all_examples_is_of_all_parts(sequences, builder):
    whole, parts = (Examples(users, builder, 5, 7) for users in (sequences, in_parts(sequences, 3)))
    assert parts.shortened() == whole.shortened()
    assert [len(rows) for rows in parts.every_part()] == [10, 10, 10]
    one, other = (examples.sample(12, key64(1)) for examples in (whole, parts))
    assert one.user_ids.equals(other.user_ids) and np.array_equal(one.items, other.items) and len(one) == 12


def test_a_run_in_parts_resumes_where_it_was(alone, llm_folder, teacher, joint, sequences, builder):
    """The parts have ten prompts each: batches of seven and three."""

    def made() -> Examples:
        return Examples(in_parts(sequences, 3), builder, CONFIG.num_candidates, seed=0)

    run = training(llm_folder, "replicated", teacher, joint, made(), CONFIG)
    assert run.steps_per_epoch == 6
    losses, states = [], []
    for numbers in run.rounds():
        losses.append(numbers["loss"])
        states.append(run.state_dict())
    assert len(run.epoch_losses()) == CONFIG.epochs and len(run.examples) == NUM_USERS
    again = training(llm_folder, "replicated", teacher, joint, made(), CONFIG, state=states[0])
    assert [numbers["loss"] for numbers in again.rounds()] == losses[1:]
    assert again.epoch_losses() == run.epoch_losses()


def test_it_holds_a_part_at_a_time(builder, tmp_path):
    storage = open_storage(str(tmp_path))
    write_sequences(storage, generated(20_000, NUM_ITEMS, 6), 8)
    users = TrainingUsers.read(storage, 1, example_bytes=EXAMPLE_BYTES)
    examples = Examples(users, builder, 5, 7)
    held = set()
    for step in range(0, examples.steps(100), 5):
        examples.global_batch(0, step, 100)
        arrays = (examples.sequences.items, examples.hashes, examples.rows, examples.positions, examples.targets)
        held.add((examples.part, sum(array.nbytes for array in arrays)))
    assert {part for part, _ in held} == set(range(len(users.parts))) and len(users.parts) >= 2
    assert max(size for _, size in held) < 2**20
