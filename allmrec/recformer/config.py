"""How RECFORMER is built and trained (`baselines.recformer`)."""

from pydantic import Field

from allmrec.core.settings import Section

ENCODER = "baselines.recformer.encoder"


class RecformerConfig(Section):
    """RECFORMER: items and histories are read as sentences by one encoder, which is trained."""

    # Hub name, folder or s3:// prefix of a bidirectional encoder, e.g. allenai/longformer-base-4096; null: a BERT of 2
    # layers and 128 dimensions, with fresh weights and a vocabulary learned from the catalogue.
    encoder: str | None = None
    revision: str | None = None  # of a hub name; pin it for reproducible results
    max_items: int = Field(50, ge=1)  # newest items of a user that are read
    # Tokens of a history that are read, those of the newest items first; null: as many as the encoder supports, at
    # most 1024; 512 for the fresh one.
    max_tokens: int | None = Field(None, ge=8)
    max_attribute_tokens: int = Field(32, ge=1)  # of an item's title, categories and description each
    temperature: float = Field(0.05, gt=0)  # that cosines are divided by
    # Of Adam, after a warm-up, falling to zero over a stage's epochs; null: 0.00005, or 0.001 for the fresh encoder.
    learning_rate: float | None = Field(None, gt=0)
    batch_size: int = Field(16, ge=1)  # users per step, over all workers
    epochs: int = Field(16, ge=1)  # of each of the two stages, at most
    patience: int = Field(5, ge=1)  # epochs in a row without a better NDCG@10 that end a stage
    validation_users: int = Field(1000, ge=0)  # about how many choose the best epoch; 0: the last one is kept
    tokens_per_pass: int = Field(8192, ge=1)  # padded tokens in one forward pass of a worker

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return self.learning_rate or (1e-3 if self.encoder is None else 5e-5)
