"""LLM-SRec's steps against plain torch, whatever the workers and passes; a group of one process, and of two."""

import numpy as np
import pytest
import torch

from allmrec.core import rows
from allmrec.data.sequences import Sequences, offsets_of, ranges
from allmrec.llm.batches import distinct_items
from allmrec.llm.loading import LLMConfig
from allmrec.llm.prompt import Prompts
from allmrec.metrics import METRICS, evaluate_scores
from allmrec.projection.engine import checksum, load_llm_with_placement, weights
from allmrec.projection.placement import llm_outline
from allmrec.readout.examples import ReadoutExamples
from allmrec.readout.losses import readout_loss
from allmrec.readout.network import ITEM, USER, fresh_readout
from allmrec.readout.prompts import read_out
from allmrec.readout.teacher import LLMSRec
from allmrec.readout.training import ReadoutTraining
from tests.projection.conftest import NUM_ITEMS
from tests.readout.conftest import CONFIG, HOW
from tests.two_workers import losses_of_two


def training(
    llm_folder, placement, teacher, examples, config=CONFIG, cases=None, state=None, items=None
) -> ReadoutTraining:
    llm_config = LLMConfig(name=str(llm_folder), dtype="float32", tokens_per_batch=400)
    llm = load_llm_with_placement(llm_config, placement, llm_outline(llm_config).largest_weight)
    items = teacher.item_embeddings if items is None else items
    return ReadoutTraining(config, llm_config, placement, llm, teacher, items, examples, cases, state=state)


def plain_loss(llm, readout, teacher, examples, users, epoch, items_NK, states=None) -> torch.Tensor:
    """Everything in one graph: no passes, no leaves, no branches, each readout has a prompt of its own.

    Args:
        states: items, and what the LLM said of them, which is not asked again.
    """
    made, config = examples.readout_prompts, examples.readout_config
    readouts = examples.readouts(users, examples.prompts(users, epoch))
    compared = examples.comparison(readouts, epoch, None if states is None else states[0])
    x_RD = teacher.represent(readouts.histories).clone()
    users_RH = said(llm, readout, made, USER, shown(examples, users, readouts, epoch), items_NK)
    items_IH = said(llm, readout, made, ITEM, made.of_items(compared.items), items_NK) if states is None else states[1]
    return readout_loss(
        config,
        readout.vectors(USER, users_RH),
        readout.teacher_vectors(x_RD),
        readout.vectors(ITEM, items_IH),
        torch.from_numpy(compared.target_R),
        torch.from_numpy(compared.competes_RI),
        teacher.shared_scores(x_RD, torch.from_numpy(compared.items).long()),
    )


def shown(examples, users, readouts, epoch) -> Prompts:
    """A prompt for each readout, of what it sees."""
    first_B = np.bincount(examples.prompts(users, epoch).slot_rows(), minlength=len(users))
    first_B = examples.positions[users] - first_B  # the oldest item that the user's prompt shows
    first_R = first_B[np.append(np.arange(len(users)), readouts.branches.rows)]
    lengths = readouts.histories.lengths - first_R
    items = readouts.histories.items[ranges(readouts.histories.offsets[:-1] + first_R, lengths)]
    return examples.readout_prompts.of_users(Sequences(readouts.histories.user_ids, offsets_of(lengths), items))


@torch.no_grad()
def round_states(llm, readout, examples, epoch, place, items_NK) -> tuple[np.ndarray, torch.Tensor]:
    """The items of the round of up to three steps that begins here, and what the LLM says of them."""
    items, made = examples.round_items(epoch, place, min(place + 3, 5)), examples.readout_prompts
    return items, said(llm, readout, made, ITEM, made.of_items(items), items_NK)


def said(llm, readout, made, kind, built, items_NK) -> torch.Tensor:
    items, here = distinct_items(built)
    soft_IH = readout.soft_tokens(items_NK[torch.from_numpy(items).long()])
    return read_out(llm, here, readout.tokens.weight[kind], soft_IH, made.padding)


@pytest.mark.parametrize("negatives", ["round", "own"])
def test_a_readout_is_told_from_what_its_user_has_not_seen(sequences, prompts, negatives):
    config = CONFIG.model_copy(update={"negatives": negatives, "round_items": 3})
    examples = ReadoutExamples(config, sequences, prompts, seed=0)
    users = np.arange(9)
    readouts = examples.readouts(users, examples.prompts(users, 0))
    assert len(readouts) > len(users) and readouts.targets[:9].tolist() == examples.targets[:9].tolist()
    items = examples.round_items(0, 0, 5) if negatives == "round" else None
    compared = examples.comparison(readouts, 0, items)
    assert items is None or set(items) >= set(readouts.targets)
    for row, target in enumerate(readouts.targets):
        seen = set(readouts.seen.take(np.array([row])).items.tolist())
        history = readouts.histories.take(np.array([row])).items.tolist()
        assert readouts.seen.take(np.array([row])).items.tolist()[: len(history) + 1] == [*history, target]
        assert compared.items[compared.target_R[row]] == target
        competing = set(compared.items[compared.competes_RI[row]].tolist())
        assert competing & seen == {target}
        if negatives == "own":
            assert len(competing) == 1 + config.num_negatives
        else:
            assert competing == set(compared.items.tolist()) - seen | {target}


@pytest.mark.parametrize(("negatives", "tokens_per_pass"), [("round", 4000), ("round", 150), ("own", 150)])
def test_steps_are_those_of_plain_torch_and_training_resumes(
    alone, negatives, tokens_per_pass, tiny_llm, llm_folder, teacher, sequences, prompts
):
    """Where every readout has a prompt of its own."""
    config = CONFIG.model_copy(update={"tokens_per_pass": tokens_per_pass, "negatives": negatives})
    examples = ReadoutExamples(config, sequences, prompts, seed=0)
    run = training(llm_folder, "replicated", teacher, examples, config)
    users, built = examples.global_batch(0, 0, 7)
    groups = run._whole_loss(users, built)[1]
    assert (len(groups) == 1) == (tokens_per_pass == 4000), "several passes are read twice"
    readout = fresh_readout(config, teacher.item_embeddings, tiny_llm.get_input_embeddings().weight, seed=0)
    for name, weight in weights(run.readout).items():
        assert torch.equal(weight, readout.state_dict()[name])
    before = checksum(teacher)

    rounds = run.rounds()
    numbers = [next(rounds)]
    state = run.state_dict()
    numbers += list(rounds)
    assert run.step == run.total_steps == 10
    assert checksum(run.engine.module.llm) == run.frozen_checksum and checksum(teacher) == before
    assert all(parameter.grad is None for parameter in run.engine.module.llm.parameters())

    optimiser = torch.optim.Adam(readout.parameters())
    losses, sizes, states = [], [len(examples.global_batch(0, place, 7)[0]) for place in range(5)], None
    for step in range(10):
        epoch, place = divmod(step, 5)
        if negatives == "round" and place in (0, 3):
            states = round_states(tiny_llm, readout, examples, epoch, place, teacher.item_embeddings)
        users, _ = examples.global_batch(epoch, place, 7)
        loss = plain_loss(tiny_llm, readout, teacher, examples, users, epoch, teacher.item_embeddings, states)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in readout.parameters()), "each part learns"
        torch.nn.utils.clip_grad_norm_(readout.parameters(), config.max_gradient_norm)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * (1 - step / 10) * min(1, (step + 1) / 10)
        optimiser.step()
    found = weights(run.readout)
    for name, expected in readout.state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-2, atol=1e-3)
    assert numbers[0]["loss"] == pytest.approx(np.average(losses[:3], weights=sizes[:3]), rel=1e-5)
    assert run.epoch_losses()[0] == pytest.approx(np.average(losses[:5], weights=sizes), rel=1e-5)

    again = training(llm_folder, "replicated", teacher, examples, config, state=state)
    assert again.step == 3
    list(again.rounds())
    for name, expected in found.items():
        assert torch.equal(weights(again.readout)[name], expected), name
    assert again.epoch_losses() == run.epoch_losses()


@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_validation_and_stored_vectors_are_the_systems(
    alone, placement, tiny_llm, llm_folder, teacher, examples, prompts, cases, monkeypatch
):
    config = CONFIG.model_copy(update={"validate_every": 1})
    run = training(llm_folder, placement, teacher, examples, config, cases)
    assert len(run.validation) > 1
    numbers = list(run.rounds())
    assert [row["users"] for row in run.curve] == [21, 30, 51, 60], "after every round"
    assert run.curve[0]["ndcg@10"] == numbers[0]["valid_ndcg@10"]
    assert run.best["ndcg@10"] == max(row["ndcg@10"] for row in run.curve)
    best = run.best_weights()
    vectors_NV, metrics = run.best_vectors(best), run.validate()
    assert metrics["ndcg@10"] == pytest.approx(run.best["ndcg@10"])

    readout = fresh_readout(CONFIG, teacher.item_embeddings, tiny_llm.get_input_embeddings().weight, seed=1)
    readout.load_state_dict(best)
    parts = (readout.requires_grad_(False), prompts, teacher.item_embeddings, vectors_NV)
    system = LLMSRec(tiny_llm, *parts, tokens_per_batch=300)
    live = system.vectors_of(np.arange(1, NUM_ITEMS + 1))
    torch.testing.assert_close(vectors_NV[1:], live, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(rows, "_ROWS", NUM_ITEMS // 3)
    read = []
    monkeypatch.setattr(run.prompts, "of_items", lambda items, of=run.prompts.of_items: read.append(items) or of(items))
    torch.testing.assert_close(run.best_vectors(best), vectors_NV, atol=1e-5, rtol=1e-4)
    assert len(read) == 3 and np.array_equal(np.concatenate(read), np.arange(1, NUM_ITEMS + 1)), "in parts"
    scores = system.scores(system.represent(cases.histories), torch.from_numpy(cases.candidates).long())
    values = evaluate_scores(scores.numpy(), cases.candidates)
    for name in ("hit@1", "ndcg@10"):
        assert metrics[name] == pytest.approx(values[:, METRICS.index(name)].mean())


def test_soft_tokens_are_made_of_joint_embeddings_where_the_config_says_so(
    alone, tiny_llm, llm_folder, teacher, joint, examples, prompts, cases
):
    """Of another dimension than x^u."""
    config = CONFIG.model_copy(update={"item_input": "joint", "epochs": 1})
    run = training(llm_folder, "replicated", teacher, examples, config, cases, items=joint)
    readout = fresh_readout(config, joint, tiny_llm.get_input_embeddings().weight, 0, teacher_dim=8)
    users, built = examples.global_batch(0, 0, 7)
    states = round_states(tiny_llm, readout, examples, 0, 0, joint)
    expected = plain_loss(tiny_llm, readout, teacher, examples, users, 0, joint, states)
    assert run.loss(users, built) == pytest.approx(expected.item(), rel=1e-5)
    before = weights(run.readout)
    list(run.rounds())
    assert not any(torch.equal(weight, before[name]) for name, weight in weights(run.readout).items())
    vectors_NV = run.best_vectors(run.best_weights())
    readout.load_state_dict(run.best_weights())
    system = LLMSRec(tiny_llm, readout.requires_grad_(False), prompts, joint, vectors_NV, tokens_per_batch=300)
    torch.testing.assert_close(vectors_NV[1:], system.vectors_of(np.arange(1, NUM_ITEMS + 1)), atol=1e-5, rtol=1e-4)


def test_it_learns_to_tell_items_apart(alone, llm_folder, teacher, examples):
    run = training(llm_folder, "replicated", teacher, examples, CONFIG.model_copy(update={"epochs": 12}))
    list(run.rounds())
    losses = run.epoch_losses()
    assert losses[-1] < 0.7 * losses[0]


def test_nan_ends_the_training_and_names_the_steps(alone, llm_folder, teacher, examples):
    run = training(llm_folder, "replicated", teacher, examples)
    run.items_NK = torch.full_like(run.items_NK, torch.nan)
    with pytest.raises(ValueError, match=r"epoch 1, steps 1 to 3.*baselines.llm_srec.learning_rate"):
        next(run.rounds())


def test_losses_are_the_same_for_two_workers_wherever_the_weights_are(alone, llm_folder, teacher, examples, tmp_path):
    """Twenty steps of one worker, and of two with unequal shares: with whole weights and ZeRO-3, with and without
    checkpointed activations."""
    config = CONFIG.model_copy(update={"epochs": 4, "checkpoint_every_steps": 1, "tokens_per_pass": 800})
    expected = [numbers["loss"] for numbers in training(llm_folder, "replicated", teacher, examples, config).rounds()]
    assert len(expected) == 20
    found = losses_of_two("tests.readout.workers", llm_folder, tmp_path)
    assert set(found) == set(HOW)
    for how, losses in found.items():
        assert losses == pytest.approx(expected, abs=1e-5), how
