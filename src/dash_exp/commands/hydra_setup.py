"""What Hydra needs in every process before it reads conf/: the functions that the configuration calls, as `${cell:...}`.

Importing this module sets it up, not starting the command: a process of a launcher loads the ledger, but not the command.
"""

from __future__ import annotations

import hashlib
import operator
import warnings
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dash_exp.core.process import in_use
from dash_exp.results.cells import load_cell
from dash_exp.results.run_folder import can_resume, same_numbers

ASSETS = Path(__file__).parents[1] / "assets"
MODELS = Path(__file__).parents[3] / "models"  # of the checkout: where `make smollm2` puts a model


def cell_name(override_dirname: str) -> str:
    """A folder name from a cell's overrides: slashes are replaced, and a long name is cut and made unique by a hash."""
    name = override_dirname.replace("/", "_") or "cell"
    if len(name) <= 150:
        return name
    return f"{name[:140]}-{hashlib.sha256(name.encode()).hexdigest()[:9]}"


def run_folder(parent: str, new: str, *, _root_: DictConfig) -> str:
    """`${run_folder:outputs/NAME,TIME}`: the newest stopped run of this configuration in `parent` that can be resumed, or else
    the new folder. With `resume=false` always the new one.
    """
    try:
        task = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
        settings: Any = OmegaConf.to_container(task, resolve=True)
    except OmegaConfBaseException:
        return f"{parent}/{new}"  # `validate` reports the error
    if settings.get("resume"):
        for folder in sorted(Path(parent).glob("*/"), reverse=True):
            if can_resume(folder) and not in_use(folder):
                cell = load_cell(folder)
                if cell.status != "done" and same_numbers(cell.config) == same_numbers(settings):
                    return str(folder)
    return f"{parent}/{new}"


def local(name: str) -> str:
    """`${local:HuggingFaceTB/SmolLM2-135M-Instruct}`: the folder models/SmolLM2-135M-Instruct of the checkout where it is
    there, else the hub name itself.
    """
    folder = MODELS / name.rpartition("/")[2]
    return str(folder) if (folder / "config.json").is_file() else name


def by_device(on_cpu: str | int, on_gpu: str | int, *, _root_: DictConfig) -> str | int:
    """`${by_device:float32,bfloat16}`: the first with trainer=cpu, the second with trainer=gpu."""
    return on_gpu if OmegaConf.select(_root_, "trainer.accelerator") == "gpu" else on_cpu


def where(true: bool, yes: Any, no: Any) -> Any:
    """`${where:${.colocate},0.4,0.9}`: the first value where the setting is true, else the second."""
    return yes if true else no


def gpus(accelerator: str, devices: int) -> int | None:
    """GPUs that a launcher asks for, for a cell; None with trainer=cpu."""
    return devices if accelerator == "gpu" else None


def tasks(devices: int, nodes: int) -> int:
    """Slurm tasks of a cell on each of so many nodes: one for each rank, but on one node one alone, which starts them."""
    return devices if nodes > 1 else 1


def nodes(training: int, sampling: Any) -> int:
    """Nodes of a cell: those that train, and those with sampling servers. `validate` reports what is no number."""
    return training + sampling if isinstance(sampling, int) else training


def of_task(each: int, devices: int, nodes: int) -> int:
    """What a Slurm task gets, of which each device needs so much."""
    return each * devices // tasks(devices, nodes)


def outcome(job: JobReturn) -> Any:
    """`JobReturn.return_value` as Hydra has it, without its line "Error executing job with overrides: [...]" on stderr: the
    error that it raises is printed once, by `cli.launch`.
    """
    assert job.status != JobStatus.UNKNOWN, "the job has not ended"
    if job.status == JobStatus.FAILED:
        raise job._return_value
    return job._return_value


def set_up() -> None:
    OmegaConf.register_new_resolver("cell", cell_name, replace=True)
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("gpus", gpus, replace=True)
    OmegaConf.register_new_resolver("times", operator.mul, replace=True)
    OmegaConf.register_new_resolver("tasks", tasks, replace=True)
    OmegaConf.register_new_resolver("nodes", nodes, replace=True)
    OmegaConf.register_new_resolver("of_task", of_task, replace=True)
    OmegaConf.register_new_resolver("local", local, replace=True)
    OmegaConf.register_new_resolver("by_device", by_device, replace=True)
    OmegaConf.register_new_resolver("where", where, replace=True)
    OmegaConf.register_new_resolver("asset", lambda name: str(ASSETS / name), replace=True)
    # `- /any_keys@data.options`: a section whose keys a command gives without +, because no file can list them
    ConfigStore.instance().store("any_keys", OmegaConf.create({}, flags={"struct": False}))
    # A launcher's settings are checked by the types that its package declares for them, which is intended.
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
    JobReturn.return_value = JobReturn.return_value.getter(outcome)  # type: ignore[attr-defined, method-assign]


set_up()
