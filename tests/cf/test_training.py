"""Training a teacher: it learns a rule, batches do not depend on workers, and a stopped run can be taken up."""

from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.cf.teacher import TeacherConfig
from allmrec.cf.training import TeacherTraining, ValidationCases, validate
from allmrec.core.artifacts import writing
from allmrec.core.hashing import Draw, draws, key64
from allmrec.core.storage import open_storage
from allmrec.data.cases import Cases
from allmrec.data.catalogue import ItemCounts
from allmrec.data.evaluation_cases import CandidateItems, EvaluationConfig, draw_cases
from allmrec.data.negative_sampling import draw_negatives
from allmrec.data.sequences import Sequences
from allmrec.data.splits import Parts
from schemas import evaluation_cases
from schemas import sequences as sequences_schema
from tests.cf.conftest import cycles, ragged, training_part

NUM_ITEMS = 30
FAST = TeacherConfig(
    dim=16,
    max_history=8,
    epochs=6,
    eval_every=2,
    batch_size=32,
    num_negatives=24,
    learning_rate=0.01,
    dropout=0.2,
    patience=5,
    validation="random",
)


def cases_of(sequences, num_items=NUM_ITEMS) -> ValidationCases:
    """The item before the last one against nine others."""
    lengths = sequences.lengths - 2
    targets = sequences.items[sequences.offsets[:-1] + lengths]
    items = np.arange(1, num_items + 1)
    negatives = draw_negatives(sequences.hashes(), sequences.rows(), sequences.items, items, 9, key64(0))
    return ValidationCases(sequences.shortened(lengths), np.column_stack([targets, negatives]))


def users_of_batches(run: TeacherTraining) -> list[set[str]]:
    return [set(run.sequences.user_ids.take(pa.array(batch)).to_pylist()) for batch in run._batches()]


@pytest.fixture(scope="module")
def sequences():
    return cycles(200, NUM_ITEMS, 9)


def training(sequences, config=FAST, seed=0, cases=None) -> TeacherTraining:
    return TeacherTraining(config, [partial(training_part, sequences)], NUM_ITEMS, cases or cases_of(sequences), seed)


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_it_learns_what_follows_what(sequences, loss):
    config = FAST.model_copy(update={"loss": loss, "epochs": 12, "dropout": 0.1})
    run = training(sequences, config)
    before = validate(run.teacher, run.cases)["valid_hit@1"]
    numbers = list(run.rounds())
    assert before < 0.35 and numbers[-1]["valid_hit@1"] > 0.95
    assert numbers[-1]["loss"] < numbers[0]["loss"]
    assert run.teacher.item_embeddings[0].eq(0).all(), "padding stays zero"


def test_the_best_validation_is_kept_and_patience_ends_the_run(sequences):
    config = FAST.model_copy(update={"epochs": 40, "eval_every": 1, "patience": 2, "learning_rate": 0.05})
    run = training(sequences, config)
    ndcg = [numbers["valid_ndcg@10"] for numbers in run.rounds()]
    best = int(np.argmax(ndcg))
    assert len(ndcg) == min(best + 1 + 2, 40) and run.best["epoch"] == best + 1
    assert validate(run.best_teacher(), run.cases)["valid_ndcg@10"] == pytest.approx(ndcg[best])


def test_without_cases_every_epoch_runs_and_the_last_one_is_kept(sequences):
    none = ValidationCases(sequences.take(np.arange(0)), np.zeros((0, 10), np.int32))
    run = training(sequences, cases=none)
    assert len(list(run.rounds())) == 3 and run.best["epoch"] == 6


def test_a_stopped_run_ends_as_an_undisturbed_one(sequences):
    calm = training(sequences)
    list(calm.rounds())
    first = training(sequences)
    next(first.rounds())
    second = training(sequences, seed=0)
    second.teacher.item_embeddings.data.add_(1)  # whatever it began with, the state decides
    second.load_state_dict(first.state_dict())
    list(second.rounds())
    for name, weight in calm.best_teacher().state_dict().items():
        assert torch.equal(weight, second.best_teacher().state_dict()[name]), name


def test_seeds_differ_and_one_seed_repeats(sequences):
    losses = [training(sequences, seed=seed).train_epoch()[0] for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_batches_do_not_depend_on_the_order_of_rows(sequences):
    run = training(sequences)
    shuffled = training(sequences.take(np.random.default_rng(1).permutation(len(sequences))))

    assert users_of_batches(run) == users_of_batches(shuffled)
    assert sorted(np.concatenate(list(run._batches()))) == list(range(len(sequences)))


def test_the_softmax_is_cross_entropy_over_target_and_negatives(sequences):
    config = FAST.model_copy(update={"dropout": 0.0, "num_negatives": 5, "batch_size": 3})
    run = training(sequences, config)
    users = next(run._batches())
    run.teacher.eval()
    key = key64(0, 0, 0, Draw.TEACHER_SHARED_NEGATIVES)
    drawn = draws(np.zeros(1, np.uint64), key, 5)[0] % np.uint64(NUM_ITEMS) + 1
    expected = 0.0
    for user in users:
        history = run.sequences.items[run.sequences.offsets[user] : run.sequences.offsets[user + 1]].tolist()
        states = run.teacher(torch.tensor([history[:-1]]))[0]
        for state, target in zip(states, history[1:], strict=True):
            others = [item for item in drawn.tolist() if item != target]
            scores = run.teacher.item_embeddings[[target, *others]] @ state
            expected -= scores.log_softmax(0)[0].item()
    assert run._loss(users, run._shared_negatives(0)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_negatives_are_items_that_may_be_drawn(monkeypatch, loss):
    drawn, sequences, drawable = [], ragged([[1, 2, 3, 4]] * 40), np.array([1, 2, 3, 4, 9, 17, 20], np.int32)
    config, none = FAST.model_copy(update={"loss": loss}), ValidationCases(ragged([]), np.zeros((0, 2), np.int32))
    run = TeacherTraining(config, [lambda: sequences], NUM_ITEMS, none, 0, drawable=drawable)
    score = run.teacher.scores
    monkeypatch.setattr(run.teacher, "scores", lambda x, items: (drawn.append(items), score(x, items))[1])
    shared = run.teacher.shared_scores
    monkeypatch.setattr(run.teacher, "shared_scores", lambda x, items: (drawn.append(items), shared(x, items))[1])
    run.train_epoch()
    assert set(torch.cat([items.flatten() for items in drawn]).tolist()) - {1} == {2, 3, 4, 9, 17, 20}


def test_in_the_whole_catalogue_only_what_may_be_drawn_competes(sequences):
    run, cases = training(sequences), cases_of(sequences)
    targets = np.unique(cases.candidates[:, 0]).astype(np.int32)
    few = validate(run.teacher, cases, "full", targets[:3])
    assert few["valid_hit@1"] > validate(run.teacher, cases, "full")["valid_hit@1"]


def test_a_sample_of_the_cases_is_as_large_as_was_asked(tmp_path):
    """Also where the cases are a sample themselves: drawn by one key, the second sample would be all of the first."""
    storage, users = open_storage(str(tmp_path)), cycles(4000, NUM_ITEMS, 5)
    lists = pa.ListArray.from_arrays(pa.array(users.offsets, pa.int32()), pa.array(users.items))
    times = pa.ListArray.from_arrays(pa.array(users.offsets, pa.int32()), pa.array(users.items).cast(pa.int64()))
    times = times.cast(pa.list_(pa.timestamp("us", "UTC")))
    train = pa.array(users.lengths - 2, pa.int32())
    table = pa.table([users.user_ids, lists, times, train], schema=sequences_schema.SCHEMA)
    with writing(storage.at("sequences"), "sequences", "test") as out:
        out.table(0, sequences_schema.SCHEMA, table)
    parts = Parts(users.lengths - 2, users.lengths - 2, users.lengths - 1)
    counts = ItemCounts(np.bincount(users.shortened(parts.train).items), np.bincount(users.items), len(users))
    drawn = draw_cases(
        users, parts, CandidateItems.of(counts, EvaluationConfig()), EvaluationConfig(), 0, {"valid": 0.5, "test": 0.5}
    )
    with writing(storage.at("cases"), "evaluation_cases", "test") as out:
        out.table(0, evaluation_cases.SCHEMA, drawn)
        out.stats["valid"] = 2000
    found = len(ValidationCases.read(storage.at("cases"), storage.at("sequences"), max_users=500, seed=0))
    assert 430 < found < 570


def test_a_position_whose_negatives_are_all_its_target_teaches_nothing(sequences):
    run = training(sequences)
    users = next(run._batches())[:1]
    only = torch.from_numpy(run.sequences.take(users).items[1:2]).long()
    loss = run._loss(users, only.repeat(4))
    loss.backward()
    assert torch.isfinite(loss) and run.teacher.item_embeddings.grad.isfinite().all()


def test_cases_are_the_validation_split_with_random_negatives_in_any_order_of_users():
    sequences = ragged([[1, 2, 3, 4], [5, 6], [7, 8, 9]])
    columns = {
        "user_id": ["user-2", "user-0", "user-0", "user-0"],
        "history_length": [1, 2, 2, 3],
        "candidates": pa.array([[8, 1, 2], [3, 1, 0], [3, 5, 6], [4, 7, 8]], pa.list_(pa.int32())),
        "split": ["valid", "valid", "valid", "test"],
        "protocol": ["random", "random", "matched", "random"],
        "warm": [False] * 4,
        "cold": [False] * 4,
    }
    cases = ValidationCases.of(Cases.select(pa.table(columns), sequences, "valid", "random"))
    assert cases.histories.items.tolist() == [7, 1, 2] and cases.candidates.tolist() == [[8, 1, 2], [3, 1, 0]]
    none = Cases.select(pa.table(columns).slice(3), sequences, "valid", "random")
    assert len(none) == 0 and len(none.histories) == 0


def test_nothing_to_learn_from_is_an_error():
    none = ValidationCases(ragged([]), np.zeros((0, 2), np.int32))
    run = TeacherTraining(FAST, [lambda: ragged([[1], [2]])], 4, none, 0)
    with pytest.raises(ValueError, match="two training interactions"):
        run.train_epoch()


def test_a_loss_that_is_no_number_names_the_step_and_its_users(sequences):
    run = training(sequences)
    third = [users for users, _ in zip(users_of_batches(run), range(3), strict=False)][2]
    loss, steps = run._loss, iter(range(10))
    run._loss = lambda users, negatives: loss(users, negatives) * (np.nan if next(steps) == 2 else 1)
    with pytest.raises(ValueError, match=r"nan in epoch 1 at step 3 \(users \['user-") as error:
        run.train_epoch()
    assert any(f"'{user}'" in str(error.value) for user in third)


def test_parts_are_read_in_turn_and_everyone_is_trained_on_once_an_epoch(sequences):
    read = []

    def part(number: int) -> Sequences:
        read.append(number)
        return training_part(sequences).take(np.arange(number, len(sequences), 3))

    run = TeacherTraining(FAST, [partial(part, number) for number in range(3)], NUM_ITEMS, cases_of(sequences), 0)
    epochs = []
    for run.epoch in range(8):
        users = [user for batch in users_of_batches(run) for user in batch]
        assert sorted(users) == sorted(sequences.user_ids.to_pylist())
        epochs.append(tuple(read))
        read.clear()
    assert all(len(order) <= 3 for order in epochs) and len({order for order in epochs if len(order) == 3}) > 1


def test_validation_against_the_catalogue_ranks_the_target_among_all_unseen_items(sequences):
    run = training(sequences)
    cases = cases_of(sequences)
    scores = run.teacher.eval().represent(cases.histories) @ run.teacher.item_embeddings.detach().T
    hits = 0
    for row, (target, *_) in enumerate(cases.candidates):
        seen = cases.histories.items[cases.histories.offsets[row] : cases.histories.offsets[row + 1]]
        rivals = [item for item in range(1, NUM_ITEMS + 1) if item not in {*seen, target}]
        hits += (scores[row, target] > scores[row, rivals]).all().item()
    assert validate(run.teacher, cases, "full")["valid_hit@1"] == pytest.approx(hits / len(cases))
