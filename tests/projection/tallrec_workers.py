"""One of two workers that train TALLRec as one does: python -m tests.projection.tallrec_workers LLM FOLDER RANK."""

import json
import os
import sys
from pathlib import Path

from torch import distributed as dist

from allmrec.projection.examples import Examples
from tests.llm.tiny import make_tokenizer
from tests.projection import conftest as shared
from tests.projection.test_tallrec import HOW, TWENTY, losses_of, training
from tests.two_workers import end_worker


def main(llm_folder: str, folder: Path, rank: int) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    words = shared.words.__wrapped__(shared.builder.__wrapped__(make_tokenizer()), make_tokenizer())
    examples = Examples(shared.sequences.__wrapped__(), words, TWENTY.num_candidates, seed=0)
    losses = {}
    for how in HOW:
        config = TWENTY.model_copy(update={"activation_checkpointing": "checkpointed" in how})
        losses[how] = losses_of(training(llm_folder, how.partition(",")[0], examples, config))
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps(losses))
    end_worker()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
