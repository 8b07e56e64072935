"""Stage-2's loss over the candidates against plain passes, title by title; whatever the workers and placements."""

import numpy as np
import pytest
import torch

from allmrec.llm.batches import SoftTokens, fill_slots
from allmrec.projection.examples import Examples
from allmrec.projection.projectors import ProjectionConfig
from allmrec.projection.user_inputs import choice
from tests.projection.test_training import CONFIG, training
from tests.two_workers import losses_of_two

CANDIDATES = CONFIG.model_copy(update={"loss": "candidates"})
CHOICE = CANDIDATES.model_copy(update={"user_input": "choice", "sharpness": 3.0})
DISTILLED = CANDIDATES.model_copy(update={"distillation": 0.4, "norm_layer": True})


@pytest.fixture(scope="module")
def examples(sequences, builder) -> Examples:
    return Examples(sequences, builder, CONFIG.num_candidates, seed=0)


def log_p(llm, builder, history, candidates, soft):
    """log P of one prompt's candidates, (C,): every title read alone, a softmax over what continues one."""
    embed, titles = llm.get_input_embeddings(), builder.titles
    prompts = builder.build(history, candidates[None, :])
    prompt = fill_slots(embed(torch.from_numpy(prompts.tokens.astype(np.int64))[None]), prompts, soft)
    paths = [
        (*titles.tokens[titles.offsets[item] : titles.offsets[item + 1]].tolist(), builder.end) for item in candidates
    ]
    found = []
    for path in paths:
        read = embed(torch.tensor([path[:-1]], dtype=torch.int64))
        logits = llm(inputs_embeds=torch.cat([prompt, read], dim=1)).logits[0, -len(path) :]
        terms = []
        for depth, token in enumerate(path):
            choices = sorted({other[depth] for other in paths if other[:depth] == path[:depth]})
            terms.append(logits[depth, choices].log_softmax(0)[choices.index(token)])
        found.append(torch.stack(terms).sum() - np.log(paths.count(path)))
    return torch.stack(found)


def plain_loss(llm, projectors, teacher, e_NJ, examples, users, epoch, config):
    """The mean over prompts of the cross-entropy with the target, and with the teacher's distribution."""
    total = torch.zeros(())
    candidates = examples.candidates(users, epoch)
    for user, shown in zip(users, candidates, strict=True):
        history = examples.histories(np.array([user]))
        x_BD = teacher.represent(history).clone()
        user_BD = x_BD
        if config.user_input == "choice":
            user_BD = choice(teacher, x_BD, torch.from_numpy(shown[None]).long(), config.sharpness)
        soft = SoftTokens(projectors.user(user_BD), projectors.item(e_NJ))
        wanted = torch.from_numpy(shown == examples.targets[user]).float()
        of_teacher = teacher.scores(x_BD, torch.from_numpy(shown[None]).long())[0].detach().softmax(0)
        wanted = (1 - config.distillation) * wanted + config.distillation * of_teacher
        total = total - (wanted * log_p(llm, examples.builder, history, shown, soft)).sum()
    return total / len(users)


@pytest.mark.parametrize("config", [CANDIDATES, DISTILLED, CHOICE], ids=["target", "distilled", "choice"])
def test_a_step_is_that_of_plain_torch(alone, config, tiny_llm, llm_folder, teacher, joint, examples):
    run = training(llm_folder, "replicated", teacher, joint, examples, config)
    users, prompts = examples.global_batch(0, 0, 7)
    assert len(run._passes(users, prompts)) > 1, "a step of several passes"
    arguments = (teacher, joint, examples, users, 0, config)
    expected = plain_loss(tiny_llm, run.projectors, *arguments)
    assert run.loss(users, prompts) == pytest.approx(expected.item(), rel=1e-5)

    gradients = torch.autograd.grad(expected, list(run.projectors.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    before = [parameter.detach().clone() for parameter in run.projectors.parameters()]
    total = run.train_step(users, prompts)
    assert float(total) / len(users) == pytest.approx(expected.item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in run.engine.module.llm.parameters())
    for parameter, old, gradient in zip(run.projectors.parameters(), before, gradients, strict=True):
        clipped = gradient * min(1.0, float(config.max_gradient_norm / norm))
        first_step = -config.learning_rate * clipped / (clipped.abs() + 1e-8)  # of Adam
        sure = gradient.abs() > 1e-3 * gradient.abs().max()
        torch.testing.assert_close((parameter - old)[sure], first_step[sure], rtol=1e-2, atol=1e-6)


def test_it_learns_to_choose(alone, llm_folder, teacher, joint, examples):
    run = training(llm_folder, "replicated", teacher, joint, examples, CANDIDATES.model_copy(update={"epochs": 6}))
    list(run.rounds())
    losses = run.epoch_losses()
    assert losses[-1] < 0.9 * losses[0]


def test_losses_are_the_same_for_two_workers_wherever_the_weights_are(
    alone, llm_folder, teacher, joint, examples, tmp_path
):
    """Ten steps of one worker, and of two with unequal shares, also with ZeRO-3 and checkpointed activations."""
    expected = {}
    for name, config in (("target", CANDIDATES), ("distilled", DISTILLED)):
        config = config.model_copy(update={"checkpoint_every_steps": 1})
        run = training(llm_folder, "replicated", teacher, joint, examples, config)
        expected[name] = [numbers["loss"] for numbers in run.rounds()]
    assert len(expected["target"]) == 10
    found = losses_of_two("tests.projection.workers", llm_folder, tmp_path)
    assert {how.partition(", ")[2] for how in found} == {"replicated", "sharded, checkpointed"}
    for how, losses in found.items():
        assert losses == pytest.approx(expected[how.partition(",")[0]], abs=1e-5), how


def test_only_candidates_can_be_distilled():
    with pytest.raises(ValueError, match="loss: candidates"):
        ProjectionConfig(distillation=0.5)
    assert ProjectionConfig(preset="paper").loss == "title"
