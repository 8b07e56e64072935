"""The config with what only the demo's commands read."""

from allmrec.demo.llm import StandinLLMConfig
from jobs.config import Config


class DemoConfig(Config):
    standin_llm: StandinLLMConfig = StandinLLMConfig()
