"""Stage-1's benchmark: the reference implementation trains the same, and a difference would be noticed."""

import json

import pyarrow as pa
import pytest
import torch
import typer
from typer.testing import CliRunner

from allmrec.alignment.network import AlignmentConfig
from allmrec.alignment.texts import DistinctTexts, TrainedTexts
from allmrec.alignment.training import AlignmentTraining
from allmrec.cf.teacher import TeacherConfig, build_teacher
from allmrec.text.encoder import TextConfig, load_encoder
from benchmarks.alignment import NAMES, main, refuse_difference
from benchmarks.alignment_reference import ReferenceTraining
from tests.cf.conftest import cycles
from tests.text.tiny import build_tiny_sbert

NUM_ITEMS = 30


@pytest.mark.parametrize("tuned", [True, False])
def test_both_implementations_train_the_same(tuned, tmp_path):
    names = [f"number {row} {'of ' * (row % 7)}" for row in range(NUM_ITEMS + 1)]
    build_tiny_sbert(names, tmp_path / "sbert")
    encoder, other = (load_encoder(TextConfig(model=str(tmp_path / "sbert"))) for _ in range(2))
    texts_NS = encoder.encode(names, convert_to_tensor=True).clone()
    teacher = build_teacher(TeacherConfig(dim=6, max_history=5), NUM_ITEMS).eval().requires_grad_(False)
    settings = {"joint_dim": 8, "beta": 0.2, "learning_rate": 0.01}
    config = AlignmentConfig(preset="paper", text_encoder="fine-tuned" if tuned else "frozen", **settings)
    texts = TrainedTexts(config, encoder, DistinctTexts.of(pa.array(names)), 4000) if tuned else None
    ours = AlignmentTraining(config, teacher, cycles(100, NUM_ITEMS, 6), texts_NS, 0, trained_texts=texts)
    weights = {name: weight.clone() for name, weight in ours.network.state_dict().items()}
    reference = ReferenceTraining(other, names, ours.items_ND, weights, 0.01, 0.5, 0.2, tuned)
    losses: tuple[list, list] = ([], [])
    for rows in ours.examples.batches(0):
        own, mine = rows.positive_R, ours.train_step(rows)
        losses[0].append({name: getattr(mine, name).item() for name in NAMES})
        x_BD = ours.examples.x_PD[torch.from_numpy(rows.target_R[own])]
        losses[1].append(reference.step(x_BD, rows.item_R[own].tolist(), rows.item_R[~own].tolist()))
    assert len(losses[0]) == 4 and losses[0][-1]["item_recon"] < 0.9 * losses[0][0]["item_recon"], "weights moved"
    for step, pair in enumerate(zip(*losses, strict=True)):
        refuse_difference(step, *pair)
    assert reference.padded > reference.read > 0 and (not tuned or texts.read < reference.read)
    wrong = losses[1][2] | {"rec": losses[1][2]["rec"] * 1.01}
    with pytest.raises(ValueError, match=r"rec of step 3 is .*, and .* in the reference"):
        refuse_difference(3, losses[0][2], wrong)


@pytest.mark.benchmark
def test_quick(tmp_path):
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--quick", "--root", str(tmp_path)])
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "alignment.json").read_text())
    assert len(content["measurements"]) == 8 and all(row["samples/s"] > 0 for row in content["measurements"])
    assert [bar["holds"] for bar in content["bars"]] == [None] * 2
