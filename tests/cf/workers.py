"""One of two workers that train as `test_pretraining`; the first one writes what came of it.

python -m tests.cf.workers <folder> <rank>
"""

import sys

from torch import distributed as dist

from allmrec.core.training_state import save_state
from tests.cf.test_pretraining import training
from tests.two_workers import end_worker


def main(folder: str, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    run = training()
    numbers = [one.get("contrastive_loss", one.get("loss")) for one in run.rounds()]
    if rank == 0:
        save_state(folder, {"numbers": numbers, "teacher": run.teacher.state_dict()})
    end_worker()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
