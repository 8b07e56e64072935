"""TALLRec: the LLM itself is tuned on prompts of titles alone, by low-rank weights, in Stage-2's loop.

Bao et al., "TALLRec" (RecSys 2023), as A-LLMRec's paper ran it: the prompt of its Figure 6, and the title for an answer
instead of "yes" or "no".
"""

from typing import Any

from allmrec.cf.training import ValidationCases
from allmrec.llm.adapter import AdapterConfig, inject
from allmrec.llm.loading import LLMConfig, Placement
from allmrec.projection.examples import Examples
from allmrec.projection.settings import Stage2Config
from allmrec.projection.stage2 import Stage2Training


class TALLRecConfig(AdapterConfig, Stage2Config):
    """TALLRec (needs the extra `lora`). `preset` sets the defaults of the other keys."""

    @property
    def weight_inputs(self) -> int:
        return len(self.target_modules)


class TALLRecTraining(Stage2Training):
    """A run whose trained part is an adapter; see `Rounds`."""

    remedy = "lower baselines.tallrec.learning_rate"
    config: TALLRecConfig

    def __init__(
        self,
        config: TALLRecConfig,
        llm_config: LLMConfig,
        placement: Placement,
        llm: Any,
        examples: Examples,
        cases: ValidationCases | None = None,
        device: Any = "cpu",
        state: dict[str, Any] | None = None,
    ):
        """See `Stage2Training.begin`.

        Args:
            examples: whose builder makes prompts without slots.

        Raises:
            ValueError: the LLM's architecture cannot be ranked by tries, or has no such layers; or PEFT is missing.
        """
        super().__init__(config, examples, device)
        adapter = inject(llm, config, examples.seed)
        if config.activation_checkpointing:
            # No soft token needs a gradient, and a reentrant checkpoint gives none to weights unless its input does.
            llm.enable_input_require_grads()
        self.begin(llm_config, placement, llm, adapter, cases, state)
