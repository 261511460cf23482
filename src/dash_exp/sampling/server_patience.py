"""How long a sampling call waits for servers."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dash_exp.core.errors import UserError
from dash_exp.sampling import own_servers
from dash_exp.sampling.own_servers import OwnServers
from dash_exp.sampling.server_call import Call
from dash_exp.sampling.server_link import SETTING, Server

WARN_EVERY_S = 30.0  # while there is no server

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """`give_up_s` and `timeout_s`: see `VLLMServerSampler`. `own`: the servers, where this run has started them."""

    give_up_s: float
    timeout_s: float
    own: OwnServers | None

    def check(self, call: Call, servers: Sequence[Server], last_live: float) -> None:
        """Raise UserError if there has been no server, or no progress on any server, for too long; of those of this run also if
        all have ended. `last_live`: when there was a server last.
        """
        now = time.monotonic()
        alone_s = 0.0 if any(s.live for s in servers) else now - max(call.started, last_live)
        if alone_s > WARN_EVERY_S * (call.said + 1):
            call.said += 1
            log.warning("no sampling server has answered for %.0f s; the run ends after %.0f s", alone_s, self.give_up_s)
        idle_s = now - max(call.finished, *(s.heard for s in servers))
        each = "; ".join(f"{s.url}: {s.said}" for s in servers)
        if self.own is not None and self.own.have_ended():
            raise UserError(own_servers.SETTING, f"all sampling servers have ended ({each})", f"See {self.own.outputs}")
        if alone_s <= self.give_up_s and idle_s <= self.give_up_s + self.timeout_s:
            return
        wrong = f"no server was available for {self.give_up_s:g} s ({each})"
        if self.own is not None:
            raise UserError(own_servers.SETTING, wrong, f"See {self.own.outputs}")
        raise UserError(SETTING, wrong, "Start them with `python -m dash_exp.serve port=...` and check what they print")
