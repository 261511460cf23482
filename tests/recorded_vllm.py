"""vLLM as far as an `Engine` uses it, without a model: it records what it is asked, and fails where the real one is wrong.

Asleep at level 2 it has no weights. The real one then writes garbage, and with adapters it has been reported to crash.
"""

from __future__ import annotations

from types import SimpleNamespace

PARTS = {"weights", "kv_cache"}


class Recorded:
    """In place of `vllm.LLM`. `asked`: what was asked of it; `weights`: what it has; `awake`: which parts of its memory."""

    def __init__(self, **settings):
        self.settings = settings
        self.asked = []
        self.weights = {}
        self.adapters = set()
        self.awake = set(PARTS)
        self.llm_engine = SimpleNamespace(
            output_processor=SimpleNamespace(),
            engine_core=SimpleNamespace(shutdown=lambda: None),
            add_lora=self._add_lora,
            remove_lora=self.adapters.discard,
        )

    def _add_lora(self, request):
        assert self.weights is not None and "weights" in self.awake, "an adapter without weights below it"
        self.asked.append("adapter")
        self.adapters.add(request.lora_int_id)

    def collective_rpc(self, name, kwargs):
        assert name == "reload_weights" and "weights" in self.awake, "there is no memory to load into"
        self.asked.append("load")
        self.weights = {key: tensor.clone() for key, tensor in kwargs["weights_iterator"]}

    def reset_prefix_cache(self):
        return True

    def sleep(self, level):
        self.asked.append(f"sleep {level}")
        self.awake = set()
        if level == 2:
            assert not self.settings.get("enable_lora"), "it crashes when it wakes"
            self.weights = None

    def wake_up(self, tags):
        assert not self.awake & set(tags)
        self.asked.append(f"wake {tags[0]}")
        self.awake |= set(tags)

    def generate(self, requests, parameters, use_tqdm, lora_request):
        assert self.awake == PARTS and self.weights, "garbage"
        self.asked.append("sample")
        logprobs = SimpleNamespace(logprobs=[-1.0])
        of_group = [
            SimpleNamespace(index=i, token_ids=[1], stop_reason=None, logprobs=logprobs) for i in range(parameters[0].n)
        ]
        return [SimpleNamespace(outputs=of_group) for _ in requests]


VLLM = SimpleNamespace(
    LLM=Recorded,
    SamplingParams=SimpleNamespace,
    sampling_params=SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY=None)),
    lora=SimpleNamespace(request=SimpleNamespace(LoRARequest=lambda name, number, folder: SimpleNamespace(lora_int_id=number))),
    distributed=SimpleNamespace(cleanup_dist_env_and_memory=lambda: None),
)
