"""The frozen LLM and its tokenizer."""

from allmrec.config import Section


class LLMConfig(Section):
    name: str = "facebook/opt-6.7b"  # hub name or local folder
    revision: str | None = None
