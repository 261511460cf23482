"""A stand-in for a sampling server, which speaks the routes of `vllm serve`, and ways in which it may misbehave."""

import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from dash_exp.sampling.server_room import UPLOAD


class StandIn(ThreadingHTTPServer):
    """A server that answers sampling requests as `script` says: a function for each request in turn, the last for all that
    follow. What it returns is the answer; it may raise.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *script, far=False, engines=1, port=0, **facts):
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.script = list(script) or [proper]
        self.facts = facts
        self.far = far  # it does not see the folders of this machine
        self.engines = engines
        self.label = "default"
        self.tokens = 0
        self.asked = []  # each sampling request
        self.called = []  # (route, what was sent), of all others that change something, failed ones too; see `noted`
        self.read = []  # the files of each folder that it was given
        self.put = {}  # path -> file
        self.deleted = []  # paths
        self.fails = {}  # route, or method of /collective_rpc -> status
        self.answers = {}  # route -> what it says instead of what is right
        self.then = {}  # route or method -> what it does after that
        self.most_at_once = self.at_once = 0
        self.guard = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that goes away is nothing to print."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def reply(self, body, status=200):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def do_GET(self):
        server, asked = self.server, urlsplit(self.path)
        about = {"id": json.dumps(server.facts)}
        query = parse_qs(asked.query)
        answers = {
            "/v1/models": {"data": [{"id": "dash", "max_model_len": server.facts.get("max_model_len", 2048)}, about]},
            "/weight_info": {"weight_version": server.label},
            "/metrics": f'vllm:generation_tokens_total{{model="dash"}} {server.tokens}\n'.encode(),
            "/get_world_size": {"world_size": 2 * (server.engines if query.get("include_dp") == ["true"] else 1)},
        }
        if asked.path == UPLOAD:
            folder = query["folder"][0]
            self.reply({}, 200 if folder == "/there" or (not server.far and Path(folder).exists()) else 404)
        else:
            self.reply((answers | server.answers)[asked.path])

    def do_PUT(self):
        self.server.put[self.path] = self.rfile.read(int(self.headers["content-length"]))
        self.server.called.append(("PUT", None))
        self.server.then.get("PUT", int)()
        self.reply(b"/there")

    def do_DELETE(self):
        self.server.deleted.append(self.path)
        self.reply({})

    def do_POST(self):
        server, route = self.server, urlsplit(self.path).path
        sent = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"null")
        key = (sent or {}).get("method", route)
        if route != "/inference/v1/generate":
            server.called.append((noted(self.path), sent))
        if key in server.fails:
            self.reply({"error": {"message": "no"}}, server.fails[key])
        elif route == "/inference/v1/generate":
            self.generate(sent)
        else:
            self.change(key, sent or {})

    def change(self, key, sent):
        server = self.server
        if key == "/update_weight_version":
            server.label = sent["new_version"]
        folder = sent.get("lora_path") or sent.get("kwargs", {}).get("weights_path")
        if folder and Path(folder).exists():
            server.read.append({path.name: path.read_bytes() for path in Path(folder).iterdir()})
        server.then.get(key, int)()
        self.reply({"success": True})

    def generate(self, sent):
        server = self.server
        with server.guard:
            server.asked.append(sent)
            act = server.script.pop(0) if len(server.script) > 1 else server.script[0]
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            answer = act(self, sent)
        finally:
            with server.guard:
                server.at_once -= 1
        if answer is not None:
            self.reply(answer)


def noted(path):
    """A route, and for one about sleep what is to be done: `/sleep?level=1`."""
    return path if path.startswith(("/sleep", "/wake_up")) else urlsplit(path).path


def answer(handler, request, token=5, **changes):
    """Made-up completions: they say the last token of their prompt, their seed as a place in the group, and a token."""
    parameters, label = request["sampling_params"], handler.server.label
    choices = []
    for i in range(parameters["n"]):
        ids = [request["token_ids"][-1], i, token]
        content = [{"token_id": t, "logprob": -1.0 - k} for k, t in enumerate(ids)]
        span = {"version": label, "start": 0, "end": 3}
        made = {"index": i, "finish_reason": "length", "stop_reason": None, "token_ids": ids, "logprobs": {"content": content}}
        choices.append(made | {"weight_versions": [span]} | changes)
    return {"model": request["model"], "choices": choices}


def proper(handler, request):
    with handler.server.guard:
        handler.server.tokens += 3
    return answer(handler, request)


def slow(handler, request):
    time.sleep(0.3)
    return proper(handler, request)


def good(completions, prompts, size=2):
    from completions import ids_of  # torch, which a stand-in that is a process of its own does without

    return ids_of(completions) == [(p.ids[-1], g, 5) for p in prompts for g in range(size)]


def cut_off(handler, request):
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(json.dumps(answer(handler, request)).encode()[:100])


def reset(handler, request):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def hangs(handler, request):
    time.sleep(3)
    return answer(handler, request, token=6)  # too late


def changed(**changes):
    return lambda handler, request: answer(handler, request, token=6, **changes)


def spans(*labels):
    return [{"version": label, "start": i, "end": i + 1} for i, label in enumerate(labels)]


def too_few(handler, request):
    made = answer(handler, request, token=6)
    return made | {"choices": made["choices"][:1]}


def no_number(handler, request):
    made = answer(handler, request, token=6)
    made["choices"][1]["logprobs"]["content"][2]["logprob"] = -9999.0  # what vLLM makes of NaN
    return made
