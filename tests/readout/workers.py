"""One of two workers that train the same as one does: python -m tests.readout.workers LLM FOLDER RANK."""

import json
import os
import sys
from pathlib import Path

from torch import distributed as dist

from allmrec.readout.examples import ReadoutExamples
from allmrec.readout.prompts import ReadoutPrompts
from tests.llm.tiny import make_tokenizer
from tests.projection import conftest as shared
from tests.readout.conftest import CONFIG, HOW
from tests.readout.test_training import training
from tests.two_workers import end_worker


def main(llm_folder: str, folder: Path, rank: int) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    tokenizer = make_tokenizer()
    builder, sequences, teacher = (
        fixture.__wrapped__(*arguments)
        for fixture, *arguments in ((shared.builder, tokenizer), (shared.sequences,), (shared.teacher,))
    )
    prompts = ReadoutPrompts(builder.config, tokenizer, builder.titles, positions=480)
    examples = ReadoutExamples(CONFIG, sequences, prompts, seed=0)
    losses = {}
    for how in HOW:
        settings = {"epochs": 4, "checkpoint_every_steps": 1, "tokens_per_pass": 800}
        config = CONFIG.model_copy(update=settings | {"activation_checkpointing": "checkpointed" in how})
        run = training(llm_folder, how.partition(",")[0], teacher, examples, config)
        losses[how] = [numbers["loss"] for numbers in run.rounds()]
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps(losses))
    end_worker()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
