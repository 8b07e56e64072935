"""Pretrained LLMs: bring one as it is published into a form that `llm.name` takes.

    allmrec models import facebook/opt-6.7b --to models/opt-6.7b
    allmrec models import s3://bucket/published/opt --to s3://bucket/models/opt --dtype bfloat16

Runs on one machine, without Ray: the result is read by all.
"""

from allmrec.core.storage import open_storage
from allmrec.llm.importing import DType, import_llm
from jobs.runtime.console import Console


def import_model(console: Console, source: str, to: str, revision: str | None, dtype: DType | None) -> None:
    """Import an LLM, and say what it is and how to name it in a config.

    Raises:
        ValueError: as `import_llm`.
    """
    target = open_storage(to)
    with console.phase("models import") as phase:
        manifest, done = import_llm(source, revision, target, dtype)
        if not done:
            console.skip("models import", "it has been imported already")
        size = sum(file["size"] for file in manifest.files.values())
        phase.stats({**manifest.config, **manifest.stats, "MB": round(size / 1e6, 1), "llm.name": to})
