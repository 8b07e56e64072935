"""The nightly benchmark: its ways agree where they must, and the command runs on any run with a bundle."""

import json

import numpy as np
import pytest
import torch
import typer
from transformers import OPTConfig, OPTForCausalLM
from typer.testing import CliRunner

from benchmarks.decoding_methods import CONSTRAINED, FREE, GENERATE, LIKELIHOOD, LISTED, TRIE, Ways
from benchmarks.large_llm import as_large_as
from benchmarks.layers_alone import LAYERS, read_as_ranked
from benchmarks.nightly import main, stored_cases
from benchmarks.readout_rates import LLM_SREC, READOUT_LAYERS, ReadoutRanking
from benchmarks.report import Benchmark
from jobs import bundle
from jobs.runtime.console import Console
from tests.jobs.in_process import executed


@pytest.fixture(scope="module")
def cases(tiny_bundle):
    return stored_cases(tiny_bundle[1].root, 12)


def test_trie_ranking_hits_what_the_evaluation_says(tiny_model, cases):
    ways = Ways(tiny_model, seed=0)
    chosen = ways.trie(cases)
    score_BC = ways.systems.score("a-llmrec", cases)
    np.testing.assert_array_equal(chosen.hit_B > 0, score_BC.argmax(axis=1) == 0)
    assert chosen.tokens > 0 and not chosen.unnamed


def test_the_layers_alone_read_what_trie_ranking_reads(tiny_model, cases):
    ways = Ways(tiny_model, seed=0)
    assert read_as_ranked(ways, cases) == ways.trie(cases).tokens


def test_constrained_decoding_always_names_somebody(tiny_model, cases):
    ways = Ways(tiny_model, seed=0)
    chosen = ways.constrained(cases)
    assert not chosen.unnamed and ((chosen.hit_B >= 0) & (chosen.hit_B <= 1)).all()
    free, generated, listed = ways.free(cases), ways.generate(cases), ways.generate(cases, beams=3)
    assert free.unnamed == generated.unnamed == listed.unnamed == len(cases), "a random LLM writes no title"
    assert listed.tokens > generated.tokens


def test_llm_srec_reads_every_user_in_every_trial_and_its_layers_read_the_same_tokens(tiny_model, cases):
    readout = ReadoutRanking(tiny_model, seed=0)
    first, second = readout.rank(cases), readout.rank(cases)
    assert first.tokens == second.tokens == readout.layers(cases) > 0
    np.testing.assert_array_equal(first.hit_B, second.hit_B)
    x_BV = readout.system.represent(cases.histories)
    score_BC = readout.system.scores(x_BV, torch.from_numpy(cases.candidates_BC).long()).numpy()
    np.testing.assert_array_equal(first.hit_B > 0, score_BC.argmax(axis=1) == 0)


def test_another_llm_on_the_same_prompts(tiny_model, cases, tmp_path):
    shape = {"hidden_size": 48, "word_embed_proj_dim": 48, "ffn_dim": 64, "num_hidden_layers": 1}
    larger = OPTForCausalLM(OPTConfig(num_attention_heads=4, max_position_embeddings=1024, **shape)).eval()
    benchmark = Benchmark("nightly", Console(log_json=True), {}, tmp_path, repeat="trial")
    share = as_large_as(benchmark, "larger", larger, tiny_model, cases, seed=0, trials=1)
    assert [labels["way"] for labels, _ in benchmark.measurements] == [
        f"{way}, larger" for way in (TRIE, FREE, GENERATE)
    ]
    assert benchmark.measurements[0][1]["MFU %"] == 100 * share > 0


def test_the_command(tiny_bundle, tmp_path):
    config, storage, _ = tiny_bundle
    executed(bundle.STEP, config)
    app = typer.Typer()
    app.command()(main)
    arguments = ["--workspace", str(storage.root), "--quick", "--users", "8", "--no-job", "--root", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "nightly.json").read_text())
    srec = (f"{LLM_SREC}, untrained", LAYERS, READOUT_LAYERS)
    ways = [TRIE, LIKELIHOOD, CONSTRAINED, FREE, GENERATE, LISTED, *srec]
    assert [row["way"] for row in content["measurements"]] == ways
    assert {bar["holds"] for bar in content["bars"]} == {None}
