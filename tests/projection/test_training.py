"""Stage-2's loss against a plain forward pass, and DeepSpeed's steps against plain torch; a group of one process."""

import os
import shutil

import numpy as np
import pytest
import torch
import transformers

from allmrec.alignment.joint import EmbeddingChoice
from allmrec.core.rows import whole
from allmrec.llm.batches import SoftTokens, fill_slots, take
from allmrec.llm.loading import LLMConfig
from allmrec.llm.ranking import Ranker
from allmrec.llm.shown_order import ShownOrder
from allmrec.metrics import METRICS, evaluate_scores
from allmrec.projection import stage2
from allmrec.projection.deepspeed_config import deepspeed_config
from allmrec.projection.engine import checksum, load_llm_with_placement, weights
from allmrec.projection.examples import Examples
from allmrec.projection.placement import llm_outline
from allmrec.projection.projectors import ProjectionConfig, fresh_projectors, item_inputs
from allmrec.projection.stage2 import Stage2Model
from allmrec.projection.training import ProjectionTraining
from tests.llm.architectures import ARCHITECTURES
from tests.llm.test_loading import DAMAGES
from tests.projection.conftest import NUM_ITEMS
from tests.text.tiny import change

CONFIG = ProjectionConfig(
    batch_size=7, tokens_per_pass=400, epochs=2, num_candidates=4, learning_rate=1e-2, checkpoint_every_steps=3
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
        x_BD = teacher.represent(examples.histories(one)).clone()
        soft = SoftTokens(projectors.user(x_BD), projectors.item(e_NJ))
        embed = llm.get_input_embeddings()
        prompt = fill_slots(embed(torch.from_numpy(prompts.tokens.astype(np.int64))[None]), prompts, soft)
        answer = torch.from_numpy(examples.builder.answers(examples.targets[one])[0].astype(np.int64))
        logits = llm(inputs_embeds=torch.cat([prompt, embed(answer)[None]], dim=1)).logits[0]
        log_p = logits[prompt.shape[1] - 1 : -1].log_softmax(-1)
        total = total - log_p[torch.arange(len(answer)), answer].sum()
    return total


def test_the_loss_is_the_answers_likelihood_and_only_projectors_get_gradients(tiny_llm, teacher, joint, examples):
    users = np.arange(9)
    projectors = fresh_projectors(8, 6, 32, seed=0)
    batch = examples.batch(users, examples.prompts(users, 0))
    x_BD = teacher.represent(examples.histories(users)).clone()
    loss = Stage2Model(tiny_llm, projectors, examples.builder.end)(batch, x_BD, joint[torch.from_numpy(batch.items)])
    expected = plain_loss(tiny_llm, projectors, teacher, joint, examples, users, 0)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    assert all(parameter.grad is None for parameter in tiny_llm.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in projectors.parameters())


def test_padding_changes_nothing(tiny_llm, teacher, joint, examples):
    users = np.arange(6)
    model = Stage2Model(tiny_llm, fresh_projectors(8, 6, 32, seed=0), examples.builder.end)
    prompts = examples.prompts(users, 0)
    assert len(set(prompts.lengths.tolist())) > 1

    def loss(rows):
        batch = examples.batch(users[rows], take(prompts, rows))
        x_BD = teacher.represent(examples.histories(batch.examples)).clone()
        return model(batch, x_BD, joint[torch.from_numpy(batch.items)]).detach()

    apart = sum(loss(np.array([row])) for row in range(6))
    torch.testing.assert_close(loss(np.arange(6)), apart, rtol=1e-5, atol=0)


def test_without_labels_nothing_is_learnt(tiny_llm, teacher, joint, examples):
    users = np.arange(2)
    projectors = fresh_projectors(8, 6, 32, seed=0)
    batch = examples.batch(users, examples.prompts(users, 0)).unlabelled()
    x_BD = teacher.represent(examples.histories(users)).clone()
    loss = Stage2Model(tiny_llm, projectors, examples.builder.end)(batch, x_BD, joint[torch.from_numpy(batch.items)])
    loss.backward()
    assert loss.item() == 0 and all(parameter.grad.abs().sum() == 0 for parameter in projectors.parameters())


def training(llm_folder, placement, teacher, joint, examples, config=CONFIG, cases=None, state=None, **llm_settings):
    llm_config = LLMConfig(name=str(llm_folder), **{"dtype": "float32"} | llm_settings)
    llm = load_llm_with_placement(llm_config, placement, llm_outline(llm_config).largest_weight)
    uses_text_N = torch.zeros(len(joint), dtype=torch.bool)
    return ProjectionTraining(
        config, llm_config, placement, llm, teacher, joint, uses_text_N, examples, cases, state=state
    )


def test_a_linear_schedule_falls_to_the_last_step(alone, llm_folder, teacher, joint, examples):
    config = CONFIG.model_copy(update={"learning_rate_schedule": "linear"})
    constant, linear = (
        training(llm_folder, "replicated", teacher, joint, examples, config=config) for config in (CONFIG, config)
    )
    rates = []
    for run in (constant, linear):
        for _ in run.rounds():
            rates.append(run.engine.optimizer.param_groups[0]["lr"])
    total, half = linear.total_steps, len(rates) // 2
    assert rates[:half] == [1e-2] * half
    assert rates[half:] == sorted(rates[half:], reverse=True)
    assert rates[-1] == pytest.approx(1e-2 / total)


@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_steps_are_those_of_plain_torch_and_training_resumes(
    alone, placement, tiny_llm, llm_folder, teacher, joint, examples
):
    run = training(llm_folder, placement, teacher, joint, examples)
    model = run.engine.module
    assert hasattr(model.llm.lm_head.weight, "ds_id") == (placement == "sharded")
    assert model.llm.lm_head.weight is model.llm.get_input_embeddings().weight, "tied"
    projectors = fresh_projectors(8, 6, 32, seed=0)
    projectors.load_state_dict(weights(run.projectors))
    norm = tiny_llm.get_input_embeddings().weight.norm(dim=1).mean()
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
        users, _ = examples.global_batch(epoch, place, 7)
        loss = plain_loss(tiny_llm, projectors, teacher, joint, examples, users, epoch) / examples.target_tokens(users)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(projectors.parameters(), CONFIG.max_gradient_norm)
        optimiser.step()
    found = weights(run.projectors)
    for name, expected in projectors.state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4)
    sizes = [examples.target_tokens(examples.global_batch(0, place, 7)[0]) for place in range(5)]
    assert numbers[0]["loss"] == pytest.approx(np.average(losses[:3], weights=sizes[:3]), rel=1e-5)
    assert run.epoch_losses()[0] == pytest.approx(np.average(losses[:5], weights=sizes), rel=1e-5)

    again = training(llm_folder, placement, teacher, joint, examples, state=state)
    assert again.step == 3
    start = fresh_projectors(8, 6, 32, seed=0)
    for name, weight in run.untrained.items():
        assert torch.equal(weight, again.untrained[name]) and not torch.equal(weight, found[name]), "of no step"
        factor = weight / start.state_dict()[name]
        torch.testing.assert_close(factor, factor.mean().expand_as(factor), rtol=1e-4, atol=1e-6)
    list(again.rounds())
    for name, expected in found.items():
        assert torch.equal(weights(again.projectors)[name], expected), name
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
    before, numbers = weights(run.projectors), next(run.rounds())
    after = weights(run.projectors)
    assert all(weight.dtype == torch.float32 for weight in after.values())
    assert np.isfinite(numbers["loss"]) and any(not torch.equal(after[name], before[name]) for name in before)
    assert checksum(run.engine.module.llm) == run.frozen_checksum


def test_nan_ends_the_training_and_names_the_steps(alone, llm_folder, teacher, joint, examples):
    with pytest.raises(ValueError, match="joint embeddings hold NaN"):
        training(llm_folder, "replicated", teacher, torch.full_like(joint, torch.nan), examples)
    run = training(llm_folder, "replicated", teacher, joint, examples)
    run.e_NJ = torch.full_like(joint, torch.nan)
    with pytest.raises(ValueError, match="epoch 1, steps 1 to 3"):
        next(run.rounds())
    assert run.step == 0


def test_the_checksum_sees_one_bit(tiny_llm):
    before = checksum(tiny_llm)
    weight = next(tiny_llm.parameters())
    bits = weight.data.view(torch.int32)
    bits[0, 0] ^= 1
    changed = checksum(tiny_llm)
    bits[0, 0] ^= 1
    assert changed != before == checksum(tiny_llm)


@pytest.mark.parametrize("activation_checkpointing", [False, True])
@pytest.mark.parametrize("where", ["sharded", "cpu", "nvme"])
def test_wherever_the_weights_lie_the_losses_are_the_same(
    alone, where, activation_checkpointing, llm_folder, teacher, joint, examples, tmp_path
):
    def losses(placement, config, **settings):
        run = training(llm_folder, placement, teacher, joint, examples, config, **settings)
        return [numbers["loss"] for numbers in run.rounds()]

    config = CONFIG.model_copy(update={"checkpoint_every_steps": 1, "epochs": 1})
    expected = losses("replicated", config)
    config = config.model_copy(update={"activation_checkpointing": activation_checkpointing})
    placement = "sharded" if where == "sharded" else "offloaded"
    if where == "nvme" and not os.environ.get("ALLMREC_TEST_NVME"):
        pytest.skip("DeepSpeed builds async_io for minutes, with libaio-dev: set ALLMREC_TEST_NVME=1")
    found = losses(placement, config, offload_to="cpu" if where != "nvme" else str(tmp_path))
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_best_epoch_is_kept_and_a_standstill_ends_the_training(
    alone, llm_folder, teacher, joint, examples, cases, monkeypatch
):
    hits = iter([0.2, 0.5, 0.4, 0.5, 0.9])
    config = CONFIG.model_copy(update={"epochs": 5, "patience": 2})
    run = training(llm_folder, "sharded", teacher, joint, examples, config, cases)
    kept = []

    def validate():
        kept.append(weights(run.projectors))
        return {"hit@1": next(hits), "ndcg@10": 0.0}

    monkeypatch.setattr(run, "validate", validate)
    list(run.rounds())
    assert run.step == 4 * run.steps_per_epoch and run.best["epoch"] == 2
    for name, weight in run.best_weights().items():
        assert torch.equal(weight, kept[1][name])


@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_validation_is_the_rankers_hit(alone, placement, tiny_llm, llm_folder, teacher, joint, examples, cases):
    run = training(llm_folder, placement, teacher, joint, examples, cases=cases, tokens_per_batch=400)
    assert len(run.validation) > 1
    before = next(run.rounds())["loss"]
    x_BD, projectors = teacher.represent(cases.histories).clone(), fresh_projectors(8, 6, 32, seed=0)
    projectors.load_state_dict(weights(run.projectors))
    with torch.no_grad():
        soft = SoftTokens(projectors.user(x_BD), projectors.item(joint))
        # The order in a prompt is the validation's own: put the candidates there as it does.
        order_of = {
            user: order
            for batch in run.validation
            for user, order in zip(batch.histories.user_ids.to_pylist(), batch.order.order_BC, strict=True)
        }
        order = ShownOrder(np.stack([order_of[user] for user in cases.histories.user_ids.to_pylist()]))
        candidates = order.shown(cases.candidates)
        log_p = Ranker(tiny_llm, examples.builder, 400).log_probabilities(cases.histories, candidates, soft)
    values = evaluate_scores(order.unshuffled(log_p), cases.candidates)
    metrics = run.validate()
    assert metrics["hit@1"] == pytest.approx(values[:, METRICS.index("hit@1")].mean())
    assert metrics["ndcg@10"] == pytest.approx(values[:, METRICS.index("ndcg@10")].mean())
    assert next(run.rounds())["loss"] != before, "and training continues after it"


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("Qwen2Config", {"tie_word_embeddings": True}),
        ("GraniteConfig", {"logits_scaling": 4.0}),
        ("Gemma2Config", {"head_dim": 8, "sliding_window": 16, "final_logit_softcapping": 2.0}),
    ],
)
def test_any_causal_lm_trains_the_same_replicated_and_sharded(
    alone, architecture, settings, tiny_tokenizer, teacher, joint, examples, tmp_path
):
    torch.manual_seed(0)
    outline = getattr(transformers, architecture)(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        **settings,
    )
    transformers.AutoModelForCausalLM.from_config(outline).save_pretrained(tmp_path)
    config = CONFIG.model_copy(update={"epochs": 1, "checkpoint_every_steps": 1})
    found = []
    for placement in ("replicated", "sharded"):
        run = training(tmp_path, placement, teacher, joint, examples, config)
        found.append([run.frozen_checksum, *(numbers["loss"] for numbers in run.rounds())])
    assert found[0][0] == found[1][0], "every weight was read"
    assert found[0][1:] == pytest.approx(found[1][1:], abs=1e-5)
    users, _ = examples.global_batch(0, 0, 7)
    llm = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    start = training(tmp_path, "replicated", teacher, joint, examples, config)
    loss = plain_loss(llm, start.projectors, teacher, joint, examples, users, 0) / examples.target_tokens(users)
    assert found[0][1] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("damage", DAMAGES)
def test_cut_weights_are_complete_or_refused(alone, damage, llm_folder, tmp_path):
    tensors, message = DAMAGES[damage]
    shutil.copytree(llm_folder, tmp_path, dirs_exist_ok=True)
    change(tmp_path, **tensors)
    with pytest.raises(ValueError, match=message):
        load_llm_with_placement(LLMConfig(name=str(tmp_path)), "sharded", 1)


def test_cut_weights_may_be_tied_and_beside_them_buffers(alone, tiny_tokenizer, tmp_path):
    llm = ARCHITECTURES["Llama, tied"].build(len(tiny_tokenizer))
    llm.save_pretrained(tmp_path)
    change(tmp_path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)})
    assert checksum(load_llm_with_placement(LLMConfig(name=str(tmp_path), dtype="float32"), "sharded", 1)) == checksum(
        llm
    )


@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_an_llm_that_tries_do_not_fit_is_refused_before_a_step(
    alone, placement, tiny_tokenizer, teacher, joint, examples, tmp_path, monkeypatch
):
    ARCHITECTURES["Qwen2"].build(len(tiny_tokenizer)).save_pretrained(tmp_path)
    monkeypatch.setattr(stage2, "deviation", lambda llm: 0.3)
    with pytest.raises(ValueError, match=r"'qwen2' cannot be used: .* off by 0\.3"):
        training(tmp_path, placement, teacher, joint, examples)
    ARCHITECTURES["GPT-Neo"].build(len(tiny_tokenizer)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'gpt_neo' cannot be used"):
        llm_outline(LLMConfig(name=str(tmp_path)))


def test_what_f_i_projects(teacher, joint):
    items_ND, q_NJ = teacher.item_embeddings.detach(), torch.randn_like(joint)
    choice = EmbeddingChoice.of(np.arange(NUM_ITEMS + 1), items_ND, min_interactions_for_cf=4)
    by_kind = {
        kind: item_inputs(CONFIG.model_copy(update={"item_input": kind}), choice, joint, q_NJ, items_ND, seed=3)
        for kind in ("joint", "teacher", "random")
    }
    assert torch.equal(whole(by_kind["joint"]), torch.cat([q_NJ[:4], joint[4:]])) and by_kind["teacher"] is items_ND
    assert by_kind["random"].shape == joint.shape and not by_kind["random"][0].any()
    assert abs(torch.corrcoef(torch.stack([by_kind["random"].flatten(), joint.flatten()]))[0, 1]) < 0.5


def test_deepspeeds_config_follows_the_placement():
    def settings(placement, **llm):
        return deepspeed_config(
            CONFIG.max_gradient_norm, LLMConfig(**llm), placement, token_dim=32, largest_weight=4096
        )

    sharded, replicated = settings("sharded", hpz_group=8), settings("replicated")
    assert sharded["zero_optimization"]["stage"] == 3 and replicated["zero_optimization"]["stage"] == 1
    assert sharded["zero_optimization"]["zero_hpz_partition_size"] == 8
    assert sharded["zero_optimization"]["stage3_param_persistence_threshold"] < 32 * 32, "matrices are cut"
    assert "bf16" not in sharded, "it would train the projectors in bfloat16"
    offloads = [settings("offloaded", offload_to=to)["zero_optimization"]["offload_param"] for to in ("cpu", "/nvme")]
    assert offloads[0]["device"] == "cpu"
    assert offloads[1]["nvme_path"] == "/nvme" and offloads[1]["buffer_size"] == 4096
    extended = settings(
        "sharded", deepspeed_overrides={"zero_optimization": {"sub_group_size": 5}, "wall_clock_breakdown": True}
    )
    assert extended == sharded | {"wall_clock_breakdown": True} | {
        "zero_optimization": sharded["zero_optimization"] | {"sub_group_size": 5, "zero_hpz_partition_size": 1}
    }
