"""Make a stand-in for the LLM, for machines that hold no pretrained one: a tiny OPT over the catalogue's titles.

    python -m jobs.demo.standin_llm --config jobs/configs/demo.yaml

Nothing is trained, and it knows no interaction; the log says how well it reads soft tokens (docs/standin.md). Point
`llm.name` at the folder that it writes. The workspace must be a local folder: transformers loads models from folders.
"""

from allmrec.core.artifacts import file_entry, read_manifest, writing
from allmrec.core.storage import LocalStorage, Storage
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import Catalogue
from allmrec.demo.llm import build
from jobs.demo.config import DemoConfig
from jobs.runtime.command import main
from jobs.runtime.step import Context, Stats, Step


def run(context: Context) -> Stats:
    config, storage = context.config, _local(context)
    assert isinstance(config, DemoConfig)
    catalogue = Catalogue.read(context.workspace.items)
    resolved = context.resolved("prompt", "standin_llm")
    with writing(storage, Workspace.standin_llm, context.fingerprint, resolved) as out:
        for entry in list(storage.list()):  # of an earlier build
            storage.delete(entry.key)
        standin = build(catalogue.titles, [config.prompt], config.standin_llm, config.seed)
        standin.save(storage.root)
        out.add({entry.key: file_entry(storage.read(entry.key)) for entry in storage.list()})
        out.stats |= standin.stats
    return {"folder": storage.uri, **standin.stats}


def plan(context: Context) -> Stats:
    return {
        "folder": _local(context).uri,
        "items": read_manifest(context.workspace.items).rows,
    }


def _local(context: Context) -> LocalStorage:
    storage: Storage = context.workspace.standin_llm
    if not isinstance(storage, LocalStorage):
        raise ValueError(
            f"the stand-in LLM is a folder of files and {storage.uri} is none; set `root` to a local folder, "
            "or put a model on every machine and name it in llm.name"
        )
    return storage


STEP = Step(
    "standin-llm",
    sections=("prompt", "standin_llm"),
    inputs=(Workspace.items,),
    outputs=(Workspace.standin_llm,),
    run=run,
    plan=plan,
    config=DemoConfig,
)

if __name__ == "__main__":
    main("standin", "llm")
