"""The command that starts a sampling server: what it refuses, and what it makes of its settings. Real servers are in
test_vllm_server.py.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, composed
from hydra.errors import HydraException
from omegaconf import OmegaConf
from transformers import PreTrainedModel

from dash_exp.commands import serve
from dash_exp.core import process
from dash_exp.core.errors import UserError
from dash_exp.models import adapter, loading
from dash_exp.sampling import server_room
from dash_exp.sampling.engine import fingerprint, weight_shapes
from dash_exp.sampling.own_servers import STARTED_BY
from dash_exp.training import record

EARLIER = ROOT / "tests" / "program" / "earlier_run"


def run(*arguments):
    command = [sys.executable, "-m", "dash_exp.serve", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["port=abc"], "port=abc: is not a whole number from 1 to 65535. Write port=8001."),
        (
            ["port=8001", "model.path=/nowhere"],
            "model.path=/nowhere: there is no such folder. Give a Transformers model folder or a hub name.",
        ),
        (["port=8001", "rollout.max_response_tokens=0"], "rollout.max_response_tokens=0: "),
        (["port=8001", "rollout.sampler.memory=1"], "rollout.sampler.memory: there is no such setting. Did you mean "),
    ],
    ids=["port", "folder", "value", "setting"],
)
def test_a_mistake_ends_with_one_message(arguments, message):
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith(f"error: {message}")


def test_help_is_the_docstring():
    done = run("--help")
    assert (done.returncode, done.stdout.strip()) == (0, serve.__doc__.strip())


def test_command_line():
    assert serve.parse(["port=80", "model=tiny", "seed=1"]) == serve.Command(80, "127.0.0.1", ["model=tiny", "seed=1"], [])
    assert serve.parse(["host=0.0.0.0", "port=80"]).host == "0.0.0.0"
    further = ["--tensor-parallel-size", "2", "x=1"]
    assert serve.parse(["port=80", "seed=1", "--", *further]) == serve.Command(80, "127.0.0.1", ["seed=1"], further)
    assert serve.parse(["seed=1"]).port == 8001
    for arguments in (
        ["port="],
        ["port=0"],
        ["port=70000"],
        ["port=1.5"],
        ["port=80", "model"],
        ["--port", "80"],
        ["port=80", "host="],
        ["run=/nowhere"],
        ["checkpoint=last"],
        [f"run={EARLIER}", "checkpoint=base"],
    ):
        with pytest.raises(UserError):
            serve.parse(arguments)


def test_configuration():
    cfg = serve.configuration(serve.Command(80, "127.0.0.1", ["model=tiny_random", "rollout.sampler.max_sequences=8"], []))
    assert cfg.rollout.sampler._target_.endswith("VLLMServerSampler")
    assert (cfg.model.name, cfg.rollout.sampler.max_sequences) == ("tiny_random", 8)
    with pytest.raises(UserError, match="rollout: has no settings for an engine"):
        serve.configuration(serve.Command(80, "127.0.0.1", ["rollout=hf"], []))
    with pytest.raises(HydraException, match="nope"):
        serve.configuration(serve.Command(80, "127.0.0.1", ["model=nope"], []))


def test_port_that_is_taken(taken):
    with pytest.raises(
        UserError, match=rf"host=127.0.0.1 port={taken}: the server cannot listen there \(Address already in use\)"
    ):
        serve.check_port(serve.Command(taken, "127.0.0.1", [], []))
    with pytest.raises(UserError, match="the server cannot listen there"):
        serve.check_port(serve.Command(80, "192.0.2.1", [], []))


def test_host_that_is_unknown(monkeypatch):
    def bind(self, address):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(UserError, match=r"^host=nowhere port=80: .* cannot listen there \(Name or service not known\)\. "):
        serve.check_port(serve.Command(80, "nowhere", [], []))


def test_folders_of_servers(tmp_path, monkeypatch):
    """One for the server that starts, none where an argument is refused; those of servers that were killed are deleted."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(server_room, "NEW_S", -1.0)
    monkeypatch.setattr(serve, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=str)))  # vLLM is there
    monkeypatch.setattr(serve, "check_port", lambda command: None)
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments[1]))
    started = []
    (tmp_path / f"{server_room.SERVED}dead").mkdir()
    monkeypatch.setattr(sys, "argv", ["serve", "port=8001", "model=tiny_random", "--", "--dtype", "float16"])
    with pytest.raises(UserError, match=r"^-- --dtype: "):
        serve.main()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(sys, "argv", sys.argv[:3])
    serve.main()
    (folder,) = tmp_path.iterdir()
    assert str(folder) == started[0][4]
    assert {"config.json", "tokenizer.json"} <= {file.name for file in folder.iterdir()}


def loaded(*overrides, further=()):
    command = serve.Command(8001, "127.0.0.1", ["model=tiny_random", *overrides], list(further))
    return serve.loaded(serve.configuration(command), command)


def value_of(option, words):
    return words[words.index(option) + 1]


def test_the_command_of_vllm():
    config, tokenizer, words = loaded(
        "rollout.sampler.max_sequences=8", "model.compute_dtype=bfloat16", further=["--nnodes", "2"]
    )
    said = {"--dtype": "bfloat16", "--max-num-seqs": "8", "--max-model-len": "2048", "--load-format": "dummy", "--port": "8001"}
    said |= {"--logprobs-mode": "processed_logprobs", "--generation-config": "vllm", "--nnodes": "2", "--api-server-count": "1"}
    assert {option: value_of(option, words) for option in said} == said
    assert {"--enable-scale-out", "--enforce-eager", "--no-enable-chunked-prefill"} <= {*words}
    assert "--enable-lora" not in words
    name, about = words[words.index("--served-model-name") + 1 :][:2]
    about = json.loads(about)
    assert name == f"dash-{about['fingerprint'][:16]}"
    policy = loading.load_policy("", architecture=config.to_dict())
    assert about["fingerprint"] == fingerprint(policy.config, weight_shapes(policy.config))
    assert (about["dtype"], about["lora_rank"], about["max_sequences"]) == ("bfloat16", None, 8)
    assert tokenizer.eos_token_id == 1


def test_a_second_machine_has_no_routes():
    """vLLM refuses to start it with a number of API servers."""
    words = loaded(further=["--nnodes", "2", "--node-rank", "1", "--headless"])[2]
    assert "--api-server-count" not in words
    with pytest.raises(UserError, match=r"-- --api-server-count: is fixed by this program"):
        loaded(further=["--api-server-count", "2"])


def test_the_command_of_vllm_with_adapters(monkeypatch):
    words = loaded("model.adapter=lora", "model.lora.r=5")[2]
    assert value_of("--max-lora-rank", words) == "8"
    assert "--enable-lora" in words
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    monkeypatch.setenv("VLLM_API_KEY", "x")
    found = serve.variables(has_adapter=True)
    assert "VLLM_API_KEY" not in found  # runs have no key
    assert (found["VLLM_SERVER_DEV_MODE"], found["VLLM_NO_USAGE_STATS"]) == ("1", "0")  # what the user has set stays
    assert found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in serve.variables(has_adapter=False)


@pytest.mark.parametrize(
    ("word", "setting"),
    [
        ("--dtype", "model.compute_dtype"),
        ("--dtype=float16", "model.compute_dtype"),
        ("--max_num_seqs", "rollout.sampler.max_sequences"),
        ("--max-num-s=4", "rollout.sampler.max_sequences"),  # what argparse takes for the same
        ("--no-enforce-eager", "rollout.sampler.eager"),
        ("--port", "port"),
    ],
)
def test_what_the_settings_say_cannot_be_said_twice(word, setting):
    with pytest.raises(UserError, match=rf"^-- {word}: comes from the setting {setting}\. Write {setting}=\.\.\., before"):
        loaded(further=[word, "8"])


@pytest.mark.parametrize(
    "word", ["--enable-chunked-prefill", "--middleware=x", "--served_model_name", "--no-enable-scale-out", "--served"]
)
def test_what_has_no_setting_is_fixed(word):
    with pytest.raises(UserError, match=rf"^-- {word}: is fixed by this program\. Leave it out"):
        loaded(further=[word, "x"])


@pytest.mark.parametrize("word", ["--api-key=x", "--disable_log_stats", "--root-path", "--ssl-keyfile", "--uds", "--ud"])
def test_what_would_keep_runs_from_using_the_server(word):
    with pytest.raises(UserError, match=rf"^-- {word}: would keep runs from using the server"):
        serve.options({}, serve.Command(80, "127.0.0.1", [], [word, "x"]))


def test_settings_are_those_of_the_run():
    """What the server starts with by itself is what train.py has with rollout=vllm_server."""
    assert serve.configuration(serve.Command(80, "127.0.0.1", [], [])) == composed("rollout=vllm_server")


def test_the_architecture_comes_without_weights(tmp_path, tokenizer):
    policy = loading.load_architecture(str(loading.ASSETS / "tiny"))
    whole = loading.load_policy(str(loading.ASSETS / "tiny"))
    assert {t.device.type for t in policy.state_dict().values()} == {"meta"}
    assert {n: t.shape for n, t in policy.state_dict().items()} == {n: t.shape for n, t in whole.state_dict().items()}
    assert loading.eos_ids(policy, tokenizer) == loading.eos_ids(whole, tokenizer) == {1}
    # a folder without weights is enough, and its generation config counts
    policy.config.save_pretrained(tmp_path)
    policy.generation_config.eos_token_id = [1, 7]
    policy.generation_config.save_pretrained(tmp_path)
    assert loading.eos_ids(loading.load_architecture(str(tmp_path)), tokenizer) == {1, 7}
    assert loading.eos_ids(loading.load_architecture("", {"model_type": "qwen2", "eos_token_id": 9}), tokenizer) == {1, 9}
    with pytest.raises(UserError, match=r"has no config\.json"):
        loading.load_architecture(str(tmp_path.parent))


def test_the_settings_of_a_run(tmp_path, monkeypatch):
    """Of its model and its engine, whatever it sampled with. The command line changes them."""

    def served(*overrides, of):
        OmegaConf.save(composed("model=tiny_random", *of), tmp_path / "config.yaml", resolve=True)
        cfg = serve.configuration(serve.parse([f"run={tmp_path}", *overrides]))
        assert cfg.rollout.sampler._target_.endswith("VLLMServerSampler")
        return cfg

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # vLLM is there
    cfg = served(of=["rollout.sampler.max_sequences=9", "model.compute_dtype=bfloat16"])
    assert (cfg.model.name, cfg.model.compute_dtype, cfg.model.adapter) == ("tiny_random", "bfloat16", None)
    assert (cfg.rollout.sampler.max_sequences, cfg.rollout.sampler.memory_share) == (9, 0.9)
    inside = ["rollout=vllm", "rollout.sampler.max_model_len=200", "rollout.sampler.memory_share=0.3"]
    cfg = served("rollout.sampler.memory_share=0.5", of=inside)
    assert (cfg.rollout.sampler.max_model_len, cfg.rollout.sampler.memory_share) == (200, 0.5)
    cfg = served(of=["rollout=vllm_server", "rollout.sampler.colocate=true", "rollout.sampler.eager=true"])
    assert (cfg.rollout.sampler.memory_share, cfg.rollout.sampler.eager) == (0.4, True)
    with pytest.raises(UserError, match=r"^algo=grpo: has no effect here"):
        served("algo=grpo", of=[])
    with pytest.raises(UserError, match=r"^rollout.sampler.max_sequences=0: is not a whole number"):
        served("rollout.sampler.max_sequences=0", of=[])


def test_a_run_of_an_earlier_version():
    """It has no settings of adapters, and no groups that came later."""
    cfg = serve.configuration(serve.parse([f"run={EARLIER}", "model.path=x"]))
    assert (cfg.rollout.sampler.max_sequences, cfg.model.adapter, cfg.model.lora.r) == (512, None, 16)


def start(arguments, monkeypatch):
    """The arguments of `vllm serve` that a command ends in."""
    started = []
    monkeypatch.setattr(serve, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=str)))  # vLLM is there
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments[1]))
    monkeypatch.setattr(serve, "check_port", lambda command: None)
    monkeypatch.setattr(sys, "argv", ["serve", *arguments])
    serve.main()
    return started[0][4:]


def test_a_checkpoint_is_served_from_its_folder_and_an_adapter_merged(tmp_path, monkeypatch, policy, tokenizer):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    run = tmp_path / "run"
    base, last, best = (tmp_path / "base", *(run / "checkpoints" / name for name in ("last", "best")))
    record.save_model(policy, tokenizer, base)
    run.mkdir()
    OmegaConf.save(composed(f"model.path={base}", f"model.tokenizer={base}"), run / "config.yaml", resolve=True)
    with pytest.raises(UserError, match=r"has no checkpoint last \(there: none\)"):
        start([f"run={run}", "checkpoint=last"], monkeypatch)
    record.save_model(policy, tokenizer, last)
    folder, *words = start([f"run={run}", "checkpoint=last"], monkeypatch)
    assert (folder, value_of("--load-format", words)) == (str(last), "auto")
    adapted = adapter.add(loading.load_policy(str(base)), str(base), r=4)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    record.save_model(adapted, tokenizer, best)
    assert not (best / "config.json").exists()
    save, kept = PreTrainedModel.save_pretrained, []
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda self, to: (kept.append(process.in_use(to)), save(self, to)))
    folder, *words = start([f"run={run}", "checkpoint=best"], monkeypatch)
    assert kept == [True]  # a server that starts at the same time does not take the folder for one that was left behind
    assert not process.in_use(Path(folder))  # but for `vllm_main`
    assert folder.startswith(str(tmp_path / "temporary" / server_room.SERVED))
    whole, merged = adapter.whole(adapted, adapter.trained(adapted)), loading.load_policy(folder).state_dict()
    assert merged.keys() == whole.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(merged[name], weight)
    changed = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged[changed], policy.state_dict()[changed])


def test_it_ends_with_the_run_that_has_started_it(monkeypatch):
    ended = []
    monkeypatch.setattr(serve.process, "end_with", lambda parent: (ended.append(parent), sys.exit(1)))
    monkeypatch.setenv(STARTED_BY, "77")
    with pytest.raises(SystemExit):
        serve.main()
    assert ended == [77]
    assert STARTED_BY not in os.environ  # its own processes are not started by the run
