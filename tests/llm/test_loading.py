"""What loading an LLM does to the CPU that will run it."""

from threading import Thread

import torch

from allmrec.llm.loading import LLMConfig, load_llm


def test_an_llm_computes_without_denormals(llm, tmp_path):
    llm.save_pretrained(tmp_path)
    products = []

    def multiply() -> None:
        products.append(float(torch.tensor([1e-30]) * torch.tensor([1e-10])))

    torch.set_flush_denormal(False)
    multiply()
    load_llm(LLMConfig(name=str(tmp_path)))
    multiply()
    thread = Thread(target=multiply)  # an actor's methods run in threads of its own
    thread.start()
    thread.join()
    assert products[0] > 0 and products[1:] == [0, 0]
