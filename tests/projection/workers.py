"""One of two workers that train the same as one does: python -m tests.projection.workers LLM FOLDER RANK."""

import json
import os
import sys
from pathlib import Path

from torch import distributed as dist

from allmrec.projection.examples import Examples
from tests.llm.tiny import make_tokenizer
from tests.projection import conftest as shared
from tests.projection.test_candidates import CANDIDATES, DISTILLED
from tests.projection.test_training import training
from tests.two_workers import end_worker


def main(llm_folder: str, folder: Path, rank: int) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    builder, sequences, teacher, joint = (
        fixture.__wrapped__(*arguments)
        for fixture, *arguments in (
            (shared.builder, make_tokenizer()),
            (shared.sequences,),
            (shared.teacher,),
            (shared.joint,),
        )
    )
    examples = Examples(sequences, builder, CANDIDATES.num_candidates, seed=0)
    losses = {}
    for how in ("target, replicated", "distilled, replicated", "distilled, sharded, checkpointed"):
        name, placement, *checkpointed = how.split(", ")
        settings = {"checkpoint_every_steps": 1, "activation_checkpointing": bool(checkpointed)}
        config = {"target": CANDIDATES, "distilled": DISTILLED}[name].model_copy(update=settings)
        run = training(llm_folder, placement, teacher, joint, examples, config)
        losses[how] = [numbers["loss"] for numbers in run.rounds()]
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps(losses))
    end_worker()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
