"""Build a small SentenceTransformer from the catalogue's texts, for machines without a real one.

    allmrec standin encoder --config jobs/configs/demo.yaml

It lies in `<root>/<name>/models/encoder/`; `text.model` may name that folder. Run `prepare` before it.
"""

import tempfile
from pathlib import Path

from allmrec.core.artifacts import commit, file_entry, invalidate, read_manifest
from allmrec.data.catalogue import Catalogue
from allmrec.demo.encoder import build_encoder
from jobs.runtime.command import main
from jobs.runtime.step import Context, Stats, Step


def run(context: Context) -> Stats:
    texts = Catalogue.read(context.artifact("items")).texts[1:]
    target, files = context.artifact("models/encoder"), {}
    with tempfile.TemporaryDirectory() as folder:
        build_encoder(texts, folder, context.config.seed)
        invalidate(target)
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            name, data = path.relative_to(folder).as_posix(), path.read_bytes()
            target.write(name, data)
            files[name] = file_entry(data)
    commit(target, "standin_encoder", context.fingerprint, files, stats={"texts": len(texts)})
    return {"texts": len(texts), "folder": target.uri}


def plan(context: Context) -> Stats:
    return {"texts": read_manifest(context.artifact("items")).rows}


STEP = Step("standin encoder", sections=(), inputs=("items",), outputs=("models/encoder",), run=run, plan=plan)

if __name__ == "__main__":
    main("standin", "encoder")
