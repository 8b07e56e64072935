"""Stage-2's loss against a plain forward pass, and DeepSpeed's steps against plain torch; a group of one process."""

import numpy as np
import pytest
import torch

from allmrec.llm.batches import SoftTokens, fill_slots, take
from allmrec.llm.loading import LLMConfig
from allmrec.projection.deepspeed_config import deepspeed_config
from allmrec.projection.engine import checksum, load_placed_llm, weights
from allmrec.projection.examples import Examples
from allmrec.projection.projectors import ProjectionConfig, fresh_projectors
from allmrec.projection.training import ProjectionTraining, Stage2Model

CONFIG = ProjectionConfig(
    batch_size=7, max_prompts_per_pass=4, epochs=2, num_candidates=4, learning_rate=1e-2, checkpoint_every_steps=3
)


@pytest.fixture(scope="module")
def examples(sequences, builder) -> Examples:
    return Examples(sequences, builder, CONFIG.num_candidates, seed=0)


def plain_loss(llm, projectors, teacher, e_NJ, examples, users, epoch):
    """Equation 8, one prompt at a time: the whole answer behind the prompt, logits everywhere."""
    total = torch.zeros(())
    for user in users:
        one = np.array([user])
        prompts = examples.prompts(one, epoch)
        x_BD = teacher.represent(examples.histories.take(one)).clone()
        soft = SoftTokens(projectors.user(x_BD), projectors.item(e_NJ))
        embed = llm.get_input_embeddings()
        prompt = fill_slots(embed(torch.from_numpy(prompts.tokens.astype(np.int64))[None]), prompts, soft)
        answer = torch.from_numpy(examples.builder.answers(examples.targets[one])[0].astype(np.int64))
        logits = llm(inputs_embeds=torch.cat([prompt, embed(answer)[None]], dim=1)).logits[0]
        log_p = logits[prompt.shape[1] - 1 : -1].log_softmax(-1)
        total = total - log_p[torch.arange(len(answer)), answer].sum()
    return total


def test_the_loss_is_the_answers_likelihood_and_only_projectors_get_gradients(llm, teacher, joint, examples):
    users = np.arange(9)
    projectors = fresh_projectors(8, 6, 32, seed=0)
    batch = examples.batch(users, examples.prompts(users, 0))
    x_BD = teacher.represent(examples.histories.take(users)).clone()
    loss = Stage2Model(llm, projectors, examples.builder.end)(batch, x_BD, joint[torch.from_numpy(batch.items)])
    expected = plain_loss(llm, projectors, teacher, joint, examples, users, 0)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    assert all(parameter.grad is None for parameter in llm.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in projectors.parameters())


def test_padding_changes_nothing(llm, teacher, joint, examples):
    users = np.arange(6)
    model = Stage2Model(llm, fresh_projectors(8, 6, 32, seed=0), examples.builder.end)
    prompts = examples.prompts(users, 0)
    assert len(set(prompts.lengths.tolist())) > 1

    def loss(rows):
        batch = examples.batch(users[rows], take(prompts, rows))
        x_BD = teacher.represent(examples.histories.take(batch.users)).clone()
        return model(batch, x_BD, joint[torch.from_numpy(batch.items)]).detach()

    apart = sum(loss(np.array([row])) for row in range(6))
    torch.testing.assert_close(loss(np.arange(6)), apart, rtol=1e-5, atol=0)


def test_without_labels_nothing_is_learnt(llm, teacher, joint, examples):
    users = np.arange(2)
    projectors = fresh_projectors(8, 6, 32, seed=0)
    batch = examples.batch(users, examples.prompts(users, 0)).unlabelled()
    x_BD = teacher.represent(examples.histories.take(users)).clone()
    loss = Stage2Model(llm, projectors, examples.builder.end)(batch, x_BD, joint[torch.from_numpy(batch.items)])
    loss.backward()
    assert loss.item() == 0 and all(parameter.grad.abs().sum() == 0 for parameter in projectors.parameters())


def training(llm_folder, placement, teacher, joint, examples, config=CONFIG, state=None, dtype="float32"):
    llm = load_placed_llm(LLMConfig(name=str(llm_folder), placement=placement, dtype=dtype))
    return ProjectionTraining(config, placement, llm, teacher, joint, examples, state=state)


@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_steps_are_those_of_plain_torch_and_training_resumes(
    alone, placement, llm, llm_folder, teacher, joint, examples
):
    run = training(llm_folder, placement, teacher, joint, examples)
    model = run.engine.module
    assert hasattr(model.llm.lm_head.weight, "ds_id") == (placement == "sharded")
    assert model.llm.lm_head.weight is model.llm.get_input_embeddings().weight, "tied"
    projectors = fresh_projectors(8, 6, 32, seed=0)
    projectors.load_state_dict(run.weights())
    norm = llm.get_input_embeddings().weight.norm(dim=1).mean()
    tokens_BH = projectors.item(joint[1:])
    torch.testing.assert_close(tokens_BH.square().sum(1).mean().sqrt(), norm, rtol=1e-4, atol=0)

    rounds = run.rounds()
    numbers = [next(rounds)]
    state = run.state_dict()
    numbers += list(rounds)
    assert run.step == run.total_steps == 10, "30 users in batches of 7, the last of 2, twice"
    assert checksum(model.llm) == run.frozen_checksum
    assert 0 <= numbers[0]["padding %"] < 50 and numbers[0]["tokens_per_s"] > numbers[0]["prompts_per_s"] > 0

    optimiser = torch.optim.Adam(projectors.parameters(), lr=CONFIG.learning_rate)
    losses = []
    for step in range(10):
        epoch, place = divmod(step, 5)
        users = examples.order(epoch)[7 * place : 7 * place + 7]
        loss = plain_loss(llm, projectors, teacher, joint, examples, users, epoch) / examples.target_tokens(users)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(projectors.parameters(), CONFIG.max_gradient_norm)
        optimiser.step()
    found = run.weights()
    for name, expected in projectors.state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4)
    sizes = [examples.target_tokens(examples.order(0)[7 * place : 7 * place + 7]) for place in range(5)]
    assert numbers[0]["loss"] == pytest.approx(np.average(losses[:3], weights=sizes[:3]), rel=1e-5)
    assert run.epoch_losses()[0] == pytest.approx(np.average(losses[:5], weights=sizes), rel=1e-5)

    again = training(llm_folder, placement, teacher, joint, examples, state=state)
    assert again.step == 3
    list(again.rounds())
    for name, expected in found.items():
        assert torch.equal(again.weights()[name], expected), name
    assert again.epoch_losses() == run.epoch_losses()


def test_the_loss_goes_down(alone, llm_folder, teacher, joint, examples):
    config = CONFIG.model_copy(update={"epochs": 8})
    run = training(llm_folder, "replicated", teacher, joint, examples, config)
    list(run.rounds())
    losses = run.epoch_losses()
    assert losses[-1] < 0.95 * losses[0]


def test_a_bfloat16_llm_trains_float32_projectors(alone, llm_folder, teacher, joint, examples):
    run = training(llm_folder, "sharded", teacher, joint, examples, dtype="bfloat16")
    assert {parameter.dtype for parameter in run.engine.module.llm.parameters()} == {torch.bfloat16}
    before, numbers = run.weights(), next(run.rounds())
    after = weights(run.projectors)
    assert all(weight.dtype == torch.float32 for weight in after.values())
    assert np.isfinite(numbers["loss"]) and any(not torch.equal(after[name], before[name]) for name in before)
    assert checksum(run.engine.module.llm) == run.frozen_checksum


def test_nan_ends_the_training_and_names_the_steps(alone, llm_folder, teacher, joint, examples):
    with pytest.raises(ValueError, match="joint embeddings hold NaN"):
        training(llm_folder, "replicated", teacher, torch.full_like(joint, torch.nan), examples)
    run = training(llm_folder, "replicated", teacher, joint, examples)
    run.e_NJ.fill_(torch.nan)
    with pytest.raises(ValueError, match="epoch 1, steps 1 to 3"):
        next(run.rounds())
    assert run.step == 0


def test_the_checksum_sees_one_bit(llm):
    before = checksum(llm)
    weight = next(llm.parameters())
    bits = weight.data.view(torch.int32)
    bits[0, 0] ^= 1
    changed = checksum(llm)
    bits[0, 0] ^= 1
    assert changed != before == checksum(llm)


def test_deepspeeds_config_follows_the_placement():
    sharded, replicated = (deepspeed_config(CONFIG, placement, 3, 32) for placement in ("sharded", "replicated"))
    assert sharded["zero_optimization"]["stage"] == 3 and replicated["zero_optimization"]["stage"] == 1
    assert sharded["gradient_accumulation_steps"] == 3
    assert sharded["zero_optimization"]["stage3_param_persistence_threshold"] < 32 * 32, "matrices are cut"
    assert "bf16" not in sharded, "it would train the projectors in bfloat16"
