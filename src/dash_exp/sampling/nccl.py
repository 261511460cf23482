"""Sending weights from GPU to GPU with vLLM's weight transfer over NCCL: the trainer's side, for one server.

vLLM is imported only when there is something to send.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from dash_exp.sampling.engine import import_vllm


def chosen(transfer: str, policy_device: str, server_device: str) -> bool:
    """Whether weights are sent over NCCL: both sides have a GPU, and `transfer` (auto, folder or nccl) allows it."""
    return transfer != "folder" and policy_device == server_device == "cuda"


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
    """Sends weights to one server: this process is rank 0 of a group, the GPUs of the server (`world_size`) are the others.

    NCCL waits forever for a peer that is gone, so a transfer of more than `timeout_s` is abandoned and raises TimeoutError.
    """

    def __init__(self, url: str, world_size: int, device: torch.device, timeout_s: float) -> None:
        self.url = url
        self.world_size = world_size
        self.device = device
        self.timeout_s = timeout_s
        self.engine: Any = None

    def send(self, tensors: Mapping[str, Tensor]) -> None:
        """Send weights, which must not change before this returns."""
        self._in_time(lambda: self._send(tensors))

    def close(self) -> None:
        if self.engine is not None:
            self.engine.shutdown()

    def _send(self, tensors: Mapping[str, Tensor]) -> None:
        torch.cuda.set_device(self.device)
        if self.engine is None:
            self.engine = self._connected()
        self.engine.source.tensors = tensors
        self.engine.send_weights()
        self.engine.source.tensors = {}

    def _connected(self) -> Any:
        source = weight_source()
        from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        host, port = meeting_point(self.url)
        info = NCCLTrainerInitInfo(master_address=host, master_port=port, world_size=1 + self.world_size, rank=0)
        client = HTTPVLLMWeightSyncClient(self.url, self.timeout_s)
        return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)

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


def meeting_point(server: str) -> tuple[str, int]:
    """The address of this machine as the server sees it, and a free port."""
    parts = urlsplit(server)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards:  # no packet is sent
        towards.connect((parts.hostname, parts.port or 80))
        host = str(towards.getsockname()[0])
    with socket.socket() as any_port:
        any_port.bind((host, 0))
        return host, int(any_port.getsockname()[1])
