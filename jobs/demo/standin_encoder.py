"""Build a small SentenceTransformer from the catalogue's texts, for machines without a real one.

    allmrec standin encoder --config jobs/configs/demo.yaml

It is written to `<root>/<name>/models/encoder/`; `text.model` may name that folder. Run `prepare` before it.
"""

import tempfile
from pathlib import Path

from allmrec.core.artifacts import read_manifest, writing
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import Catalogue
from allmrec.demo.encoder import build_encoder
from jobs.runtime.command import main
from jobs.runtime.step import Context, Stats, Step


def run(context: Context) -> Stats:
    texts = Catalogue.read(context.workspace.items, texts=True).texts[1:]
    target = context.workspace.standin_encoder
    with (
        tempfile.TemporaryDirectory() as folder,
        writing(target, "standin_encoder", context.fingerprint) as out,
    ):
        build_encoder(texts, folder, context.config.seed)
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            out.file(path.relative_to(folder).as_posix(), path.read_bytes())
        out.stats["texts"] = len(texts)
    return {"texts": len(texts), "folder": target.uri}


def plan(context: Context) -> Stats:
    return {"texts": read_manifest(context.workspace.items).rows}


STEP = Step(
    "standin encoder",
    sections=(),
    inputs=(Workspace.items,),
    outputs=(Workspace.standin_encoder,),
    run=run,
    plan=plan,
)

if __name__ == "__main__":
    main("standin", "encoder")
