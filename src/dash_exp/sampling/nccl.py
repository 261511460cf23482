"""Sending weights from GPU to GPU with vLLM's weight transfer over NCCL: the trainer's side, for one server.

The server's side is `/transfer/STEP` (see `dash_exp.sampling.server`). vLLM is imported only when there is something to send.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import torch
from torch import Tensor

from dash_exp.sampling.engine import import_vllm


def chosen(transfer: str, policy_device: str, server_device: str) -> bool:
    """Whether weights are sent over NCCL: both sides have a GPU, and `transfer` (auto, http or nccl) allows it."""
    return transfer != "http" and policy_device == server_device == "cuda"


def weight_source() -> Any:
    """A vLLM `WeightSource` that sends its `tensors`, under all of their names.

    vLLM's own source for modules uses `named_parameters`, which omits a tied `lm_head.weight`.
    """
    import_vllm()
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):
        tensors: Mapping[str, Tensor] = {}

        def metadata(self) -> list[Any]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            yield from self.tensors.items()

    return Source()


class Sender:
    """Sends weights to one server: this process is rank 0 of a group of two, the server rank 1.

    It is also the client that vLLM's engine calls, a `VLLMWeightSyncClient`. NCCL waits forever for a peer that is gone, so a
    transfer of more than `timeout_s` is abandoned and raises TimeoutError.
    """

    def __init__(self, http: httpx.Client, device: torch.device, timeout_s: float) -> None:
        self.http = http
        self.device = device
        self.timeout_s = timeout_s
        self.version = 0
        self.answer: dict[str, Any] = {}
        self.engine: Any = None

    def send(self, tensors: Mapping[str, Tensor], version: int) -> dict[str, Any]:
        """Send weights, which must not change before this returns. Returns the /health of the server afterwards."""
        self.version = version
        self._in_time(lambda: self._send(tensors))
        return self.answer

    def close(self) -> None:
        if self.engine is not None:
            self.engine.shutdown()

    def _send(self, tensors: Mapping[str, Tensor]) -> None:
        torch.cuda.set_device(self.device)
        if self.engine is None:
            source = weight_source()
            from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            host, port = meeting_point(self.http.base_url)
            info = NCCLTrainerInitInfo(master_address=host, master_port=port, world_size=2, rank=0)
            self.engine = WeightTransferTrainerFactory.trainer_init(info, client=self, source=source)
        self.engine.source.tensors = tensors
        self.engine.send_weights()

    def _in_time(self, work: Callable[[], None]) -> None:
        failure: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=run, daemon=True, name="NCCL")
        thread.start()
        thread.join(self.timeout_s)
        if thread.is_alive():
            raise TimeoutError(f"not finished after {self.timeout_s:g} s")
        if failure:
            raise failure[0]

    # --- VLLMWeightSyncClient ----------------------------------------------------------------------------------------

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._post("init_weight_transfer_engine", init_info)

    def start_weight_update(self) -> None:
        self._post("start_weight_update", None)

    def update_weights(self, update_info: Any) -> None:
        self._post("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._post("finish_weight_update", None)

    def _post(self, step: str, argument: Any) -> None:
        response = self.http.post(f"/transfer/{step}", params={"version": self.version}, json=argument)
        if response.status_code != 200:
            raise RuntimeError(f"{step}: {response.text}")
        self.answer = response.json()


def meeting_point(server: httpx.URL) -> tuple[str, int]:
    """The address of this machine as the server sees it, and a free port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards:  # no packet is sent
        towards.connect((server.host, server.port or 80))
        host = str(towards.getsockname()[0])
    with socket.socket() as any_port:
        any_port.bind((host, 0))
        return host, int(any_port.getsockname()[1])
