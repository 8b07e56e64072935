"""TALLRec's steps against plain torch and PEFT, wherever the weights are; an adapter that learns what words say."""

import numpy as np
import pytest
import torch

from allmrec.cf.training import ValidationCases
from allmrec.core.artifacts import commit
from allmrec.core.storage import open_storage
from allmrec.llm.adapter import Adapter, inject, load_adapter, save_adapter
from allmrec.llm.loading import LLMConfig
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Titles
from allmrec.llm.ranking import Ranker
from allmrec.metrics import METRICS, evaluate_scores
from allmrec.projection.engine import checkpoint_activations, checksum, load_llm_with_placement, weights
from allmrec.projection.examples import Examples
from allmrec.projection.placement import activation_bytes, llm_outline
from allmrec.projection.stage2 import Stage2Model
from allmrec.projection.tallrec import TALLRecConfig, TALLRecTraining
from tests.llm.tiny import histories, make_llm, titles_array
from tests.two_workers import losses_of_two

CONFIG = TALLRecConfig(
    batch_size=7, tokens_per_pass=400, epochs=2, num_candidates=4, learning_rate=1e-2, checkpoint_every_steps=3
)
TWENTY = CONFIG.model_copy(update={"epochs": 4, "checkpoint_every_steps": 1})  # steps, each with its loss
HOW = ("replicated", "replicated, checkpointed", "sharded", "sharded, checkpointed")  # two workers train


@pytest.fixture(scope="module")
def examples(sequences, words) -> Examples:
    return Examples(sequences, words, CONFIG.num_candidates, seed=0)


def training(llm_folder, placement, examples, config=CONFIG, cases=None, state=None, **llm_settings) -> TALLRecTraining:
    llm_config = LLMConfig(name=str(llm_folder), **{"dtype": "float32"} | llm_settings)
    llm = load_llm_with_placement(llm_config, placement, llm_outline(llm_config).largest_weight)
    return TALLRecTraining(config, llm_config, placement, llm, examples, cases, state=state)


def randomised(adapter: Adapter) -> Adapter:
    generator = torch.Generator().manual_seed(0)
    for weight in adapter.parameters():
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return adapter


def losses_of(run: TALLRecTraining) -> list[float]:
    return [numbers["loss"] for numbers in run.rounds()]


def plain_loss(llm, examples, users, epoch):
    """Equation 8, one prompt at a time: the answer's tokens behind the prompt's, logits everywhere."""
    total = torch.zeros(())
    for user in users:
        one = np.array([user])
        answer, _ = examples.builder.answers(examples.targets[one])
        prompt = examples.prompts(one, epoch).tokens
        read = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))
        log_p = llm(input_ids=read[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total = total - log_p[torch.arange(len(answer)), read[len(prompt) :]].sum()
    return total


@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_steps_are_those_of_plain_torch_and_peft_and_training_resumes(
    alone, placement, tiny_tokenizer, llm_folder, examples
):
    import peft

    run = training(llm_folder, placement, examples)
    before = checksum(make_llm(tiny_tokenizer))
    rounds = run.rounds()
    next(rounds)
    state = run.state_dict()
    list(rounds)
    assert run.step == 10 and checksum(run.engine.module.llm) == run.frozen_checksum == before

    torch.manual_seed(0)
    plain = make_llm(tiny_tokenizer)
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(plain, lora).eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser, losses = torch.optim.Adam(trained, lr=CONFIG.learning_rate), []
    for step in range(10):
        epoch, place = divmod(step, 5)
        users, _ = examples.global_batch(epoch, place, 7)
        loss = plain_loss(model, examples, users, epoch) / examples.target_tokens(users)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CONFIG.max_gradient_norm)
        optimiser.step()
    found, expected = weights(run.trained), peft.get_peft_model_state_dict(model)
    assert {name.replace("/", ".") for name in found} == set(expected)
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name.replace("/", ".")], rtol=1e-3, atol=1e-4)
    sizes = [examples.target_tokens(examples.global_batch(0, place, 7)[0]) for place in range(5)]
    assert run.epoch_losses()[0] == pytest.approx(np.average(losses[:5], weights=sizes), rel=1e-5)

    again = training(llm_folder, placement, examples, state=state)
    assert again.step == 3
    list(again.rounds())
    for name, weight in found.items():
        assert torch.equal(weights(again.trained)[name], weight), name
    assert again.epoch_losses() == run.epoch_losses()


def test_losses_are_the_same_for_two_workers_wherever_the_weights_are(alone, llm_folder, examples, tmp_path):
    """Twenty steps of one worker, and of two with unequal shares: with whole weights and ZeRO-3, with and without
    checkpointed activations."""
    expected = losses_of(training(llm_folder, "replicated", examples, TWENTY))
    assert len(expected) == 20 and expected[-1] < expected[0]
    found = losses_of_two("tests.projection.tallrec_workers", llm_folder, tmp_path)
    assert set(found) == set(HOW)
    for how, losses in found.items():
        assert losses == pytest.approx(expected, abs=1e-5), how


@pytest.mark.parametrize("loss", ["title", "candidates"])
def test_checkpointing_changes_no_gradient(loss, tiny_tokenizer, examples):
    """Of weights that are not at their start, where A has none."""
    users, found = np.arange(4), []
    prompts = examples.prompts(users, 0)
    for checkpointing in (False, True):
        llm = make_llm(tiny_tokenizer)
        adapter = randomised(inject(llm, CONFIG))
        if checkpointing:
            checkpoint_activations(llm)
            llm.enable_input_require_grads()
        work = examples.batch(users, prompts)
        if loss == "candidates":
            work = examples.candidate_batch(users, prompts, examples.candidates(users, 0))
        Stage2Model(llm, adapter, examples.builder.end)(work).sum().backward()
        found.append([weight.grad for weight in adapter.parameters()])
    for one, other in zip(*found, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_bfloat16_llm_trains_a_float32_adapter(alone, llm_folder, examples):
    run = training(llm_folder, "sharded", examples, dtype="bfloat16")
    assert {weight.dtype for weight in run.trained.parameters()} == {torch.float32}
    loss = next(run.rounds())["loss"]
    assert np.isfinite(loss) and all(weight.abs().sum() > 0 for weight in weights(run.trained).values())
    assert checksum(run.engine.module.llm) == run.frozen_checksum


def test_validation_and_the_stored_adapter_are_the_rankers(
    alone, tiny_tokenizer, llm_folder, examples, cases, tmp_path
):
    """The best weights, in PEFT's own layout: opened by PEFT, switched on, and merged they are the same LLM."""
    import peft

    run = training(llm_folder, "replicated", examples, CONFIG, cases, tokens_per_batch=400)
    list(run.rounds())
    storage = open_storage(str(tmp_path))
    files = save_adapter(storage, run.best_weights(), CONFIG, str(llm_folder))
    commit(storage, "tallrec", "test", files)
    llm = make_llm(tiny_tokenizer)
    adapter, builder = load_adapter(storage, llm), examples.builder
    candidates = np.concatenate([batch.order.shown(batch.candidates) for batch in run.validation])
    users = np.concatenate([batch.histories.user_ids.to_pylist() for batch in run.validation])
    rows = [cases.histories.user_ids.to_pylist().index(user) for user in users]
    shown = cases.histories.take(np.array(rows))

    def log_p(model) -> np.ndarray:
        return Ranker(model, builder, 400).log_probabilities(shown, candidates)

    plain = log_p(make_llm(tiny_tokenizer))
    np.testing.assert_array_equal(log_p(llm), plain)
    with adapter.switched_on():
        on = log_p(llm)
    np.testing.assert_array_equal(log_p(llm), plain, "and off again")
    assert np.abs(on - plain).max() > 0.01
    order = np.concatenate([batch.order.order_BC for batch in run.validation])
    unshuffled = np.empty_like(on)
    np.put_along_axis(unshuffled, order, on, axis=1)
    values = evaluate_scores(unshuffled, cases.candidates[rows])
    assert run.best["hit@1"] == pytest.approx(values[:, METRICS.index("hit@1")].mean())

    tokens = torch.from_numpy(builder.build(shown, candidates).tokens[None, :40].astype(np.int64))
    opened = peft.PeftModel.from_pretrained(make_llm(tiny_tokenizer), tmp_path)
    with torch.no_grad(), adapter.switched_on():
        assert torch.equal(opened(input_ids=tokens).logits, llm(input_ids=tokens).logits)
    adapter.merge(llm)
    assert not any("lora" in name for name, _ in llm.named_modules())
    np.testing.assert_allclose(log_p(llm), on, atol=1e-5)


def test_memory_is_planned_for_the_inputs_of_trained_weights(llm_folder):
    outline = llm_outline(LLMConfig(name=str(llm_folder), dtype="bfloat16"))
    frozen, trained = (activation_bytes(outline, 100, False, inputs) for inputs in (0, CONFIG.weight_inputs))
    assert trained - frozen == 100 * 2 * 2 * 32 * 4, "tokens, layers, matrices, H, bytes"


def test_a_fresh_adapter_is_llm_only_to_the_bit(tiny_tokenizer, examples):
    users = np.arange(9)
    shown, candidates = examples.histories(users), examples.candidates(users, 0)
    found = []
    for adapted in (False, True):
        llm = make_llm(tiny_tokenizer)
        if adapted:
            inject(llm, CONFIG, seed=5)
        found.append(Ranker(llm, examples.builder, 400).log_probabilities(shown, candidates))
    np.testing.assert_array_equal(*found)


def test_it_learns_that_the_next_title_shares_a_word_with_the_history(alone, tiny_tokenizer, llm_folder):
    """Hit@1 of users that no step saw, three standard errors above chance."""
    words = ["Moonfall", "Garden", "Deluxe", "Chronicles", "Edition", "Last"]
    titles = titles_array([f"{word} {letter}" for word in words for letter in "ABCDEF"])
    prompt = PromptConfig(max_history=4)
    builder = PromptBuilder(
        prompt, tiny_tokenizer, Titles.tokenise(titles, tiny_tokenizer, 24), soft=False, max_tokens=480
    )
    random = np.random.default_rng(0)
    users = histories([(random.permutation(6)[:4] + 6 * random.integers(6) + 1).tolist() for _ in range(400)])
    held_out = users.take(np.arange(320, 400))
    target = held_out.items[held_out.offsets[1:] - 1]
    others = (target[:, None] - 1) // 6 + random.permuted(np.tile(np.arange(1, 6), (80, 1)), axis=1)[:, :3]
    negatives = others % 6 * 6 + random.integers(6, size=others.shape) + 1
    candidates = np.concatenate([target[:, None], negatives], axis=1).astype(np.int32)
    cases = ValidationCases(held_out.shortened(held_out.lengths - 1), candidates)
    changes = {"loss": "candidates", "learning_rate": 0.03, "epochs": 1, "batch_size": 16, "tokens_per_pass": 4000}
    examples = Examples(users.take(np.arange(320)), builder, 4, seed=0)
    run = training(llm_folder, "replicated", examples, CONFIG.model_copy(update=changes), cases)
    before = run.validate()["hit@1"]
    list(run.rounds())
    bar = 3 * (0.25 * 0.75 / len(cases)) ** 0.5
    assert abs(before - 0.25) < bar and run.curve[-1]["hit@1"] > 0.25 + bar
