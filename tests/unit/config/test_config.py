"""Reading of configs: a wrong setting is refused in one clear line; a valid config survives a round trip."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demopsd_dist.config import Config, Transport, check_optimizer_package, load, publishes_on_gpus, to_yaml
from demopsd_dist.config.cross_checks import check_layout_has_records
from demopsd_dist.data.sources import load_data
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.util.errors import ConfigError

ROOT = Path(__file__).parents[3]
SHIPPED = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "controls").glob("*.yaml")])
DEMO = ROOT / "configs" / "demo.yaml"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load(path)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "again.yaml") == config


def test_words_go_over_the_file_and_the_file_over_the_defaults() -> None:
    config = load(DEMO, ["learner.zero_stage=3", "demopsd.top_k=null", "data.ood=null"])
    assert config.learner.zero_stage == 3
    assert config.demopsd.top_k is None
    assert config.data.ood is None
    assert config.rollout.group_size == 8
    assert config.teacher.ema_rate == Config().teacher.ema_rate


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("learner.zero_stag=3", "no setting learner.zero_stag. Did you mean learner.zero_stage?"),
        ("learing_rate=3", "no setting learing_rate. Did you mean learner.learning_rate?"),
        ("trainer.learningrate=3", "no setting trainer.learningrate. Did you mean learner.learning_rate?"),
        ("rollout.temperture=1", "no setting rollout.temperture. Did you mean rollout.temperature?"),
        ("sampler.xyzzy.q=1", "no setting sampler.xyzzy. `demopsd train demo --dry-run --full` shows all."),
        ("zero_stage=3", "no setting zero_stage. Did you mean learner.zero_stage?"),
        ("xyzzy=3", "no setting xyzzy. `demopsd train demo --dry-run --full` shows all."),
        ("learner=3", "learner"),
        ("learner.zero_stage=two", "zero_stage"),
        ("learner.zero_stage=4", "learner.zero_stage=4 must be between 0 and 3"),
        ("steps=-1", "steps=-1 must be at least 0"),
        ("demopsd.alpha_max=1.5", "demopsd.alpha_max=1.5 must be between 0 and 1"),
        ("demopsd.gate_sensitivity=nan", "demopsd.gate_sensitivity=nan must be finite"),
        ("rollout.temperature=-1", "rollout.temperature=-1.0 must be between 0.01 and 2"),
        ("rollout.group_size=1", "rollout.group_size=1 leaves no sibling"),
        ("model.precision=int3", "int3"),
        (
            "learner.offload=optimizer",
            "on CPU the optimizer's state is in main memory already. Set",
        ),
        ("profile.steps=[7,41]", "profile.steps=41 must be between 1 and 40"),
        ("learner.learning_rate=0", "learner.learning_rate=0.0 must be greater than 0"),
        ("rollout.kv_cache_gib=0.5", "rollout.kv_cache_gib=0.5: a CPU engine takes whole GiB. Set it to 1."),
        ("seed=0x1ffffffff", "seed is a number of 33 bits; it may have 32"),
        ("name=..", "name='..' names a folder"),
        ("name=???", "'???' is a reference to something else. Write the value itself."),
        ("reward=${name}", "'${name}' is a reference to something else"),
        ("steps={", "steps={ is not readable YAML"),
        ("learner.learning_rate=.inf", "learner.learning_rate=inf must be finite"),
        ("rollout.max_batch_sequences=99999", "is below rollout.max_batch_sequences=99999"),
        ("privileged.template='{prompt}'", "holds {solution} 0 times"),
        ("name=a/b", "name='a/b' names a folder"),
        ("rollout.max_batch_tokens=100", "is below rollout.max_prompt_tokens + rollout.max_response_tokens = 2112"),
        ("--steps", "'--steps' is not of the form key=value"),
        ("method=spdo", "method"),
        ("sdpo.divergence=jsd", "sdpo.divergence=jsd has no effect with method=demopsd. Add method=sdpo, or drop it."),
        ("demopsd.reference=trust_region", "only a teacher can be that"),
        ("demopsd.gate=linear", "linear"),
        ("learner.schedule=triangle", "triangle"),
        ("learner.final_learning_rate_fraction=2", "final_learning_rate_fraction=2.0 must be between 0 and 1"),
        ("learner.nodes=big", "learner.nodes=big must be key=value, key=!value or key=in(one,other)"),
        ("learner.nodes=role=big", "learner.nodes=role=big chooses among the nodes of a cluster"),
        ("leakage.contexts=1", "leakage.contexts=1 must be at least 2"),
        ("steps=ten", "steps=ten: 'ten' is not a whole number."),
        ("learner.learning_rate=fast", "'fast' is not a number."),
        ("deterministic=maybe", "'maybe' is not true or false."),
        ("privileged.source=datset", "'datset' is none of sibling, dataset, sibling_or_dataset, sibling_and_dataset"),
        ("privileged.source=datset", "other_question. Did you mean dataset?"),
        ("steps=null", "null has no meaning here. Give a whole number, or leave it out."),
        ("alarm=3", "this is a section of settings, not one value. Give one of its settings"),
    ],
)
def test_a_wrong_word_is_refused_in_one_line(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load(DEMO, [word])
    assert "\n" not in str(caught.value)


def test_a_wrong_value_in_a_file_names_its_key(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"base: {DEMO}\nlearner:\n  zero_stage: three\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}: learner.zero_stage: 'three' is not a whole number.")):
        load(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.format=choices"], "data.format has no effect: all questions come from minisci, whose layout"),
        (["data.suffix=x"], "data.suffix has no effect: all questions come from minisci"),
        (["data.train=gym:chain_sum", "data.fields.text=q"], "data.fields has no effect: all questions come from gym"),
    ],
)
def test_a_layout_without_records_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_data(load(DEMO, words).data)


def test_a_layout_for_one_split_or_texts_for_tasks_are_no_error() -> None:
    check_layout_has_records(load(DEMO, ["data.train=a.jsonl", "data.format=choices"]).data)
    check_layout_has_records(
        load(DEMO, ["data.train=gym:chain_sum", "data.test=gym:chain_sum", "data.ood=null", "data.suffix=x"]).data
    )
    check_layout_has_records(load(DEMO, ["data.train=[{path: a.jsonl}]", "data.suffix=x"]).data)


def test_an_optimizer_in_8_bits_is_not_offloaded_and_needs_its_package() -> None:
    words = ["learner.optimizer=adamw_8bit", "learner.gpus_per_worker=1", "learner.num_workers=1"]
    with pytest.raises(ConfigError, match=r"bitsandbytes' update is slow on CPU.* Set learner\.offload=none"):
        load(DEMO, [*words, "learner.offload=optimizer"])
    config = load(DEMO, words)
    check_optimizer_package(config, is_installed=lambda package: package == "bitsandbytes")
    with pytest.raises(ConfigError, match=r"needs bitsandbytes, .* Install it: make bitsandbytes"):
        check_optimizer_package(config, is_installed=lambda package: False)
    check_optimizer_package(load(DEMO, []), is_installed=lambda package: False)


def test_an_offloaded_optimizer_needs_shards() -> None:
    words = ["learner.offload=optimizer", "learner.gpus_per_worker=1", "learner.num_workers=1"]
    load(DEMO, words)
    with pytest.raises(ConfigError, match=r"learner.zero_stage=0: DeepSpeed offloads the shards of ZeRO\. Set"):
        load(DEMO, [*words, "learner.zero_stage=0"])


def test_a_schedule_needs_steps_after_the_warm_up() -> None:
    with pytest.raises(ConfigError, match=r"schedule=cosine begins after learner.warmup_steps=5, and steps=5. Raise"):
        load(DEMO, ["learner.schedule=cosine", "steps=5"])
    load(DEMO, ["steps=5"])


def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path) -> None:
    for name, text, message in (
        ("unknown.yaml", "rollout: {num_worker: 2}", "Did you mean rollout.num_workers?"),
        ("list.yaml", "- 1\n- 2", "a mapping of settings is needed"),
        ("broken.yaml", "a: [1, 2", "is not readable YAML"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="There is no config file"):
        load(tmp_path / "none.yaml")


def test_a_file_goes_over_its_base(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("base: two.yaml\nsteps: 5\n")
    (tmp_path / "two.yaml").write_text(f"base: {DEMO}\nsteps: 6\nseed: 7\n")
    config = load(tmp_path / "one.yaml")
    assert (config.steps, config.seed, config.rollout.prompts_per_step) == (5, 7, 24)
    (tmp_path / "two.yaml").write_text("base: one.yaml\n")
    with pytest.raises(ConfigError, match=r"one.yaml is its own base, by way of .*one.yaml, .*two.yaml"):
        load(tmp_path / "one.yaml")
    (tmp_path / "two.yaml").write_text("base: three.yaml\n")
    with pytest.raises(ConfigError, match=r"two.yaml: base: there is no config file .*three.yaml"):
        load(tmp_path / "two.yaml")


def test_each_method_needs_what_it_needs() -> None:
    """Groups of one response leave nothing to compare for grpo, and no sibling for the others."""
    with pytest.raises(ConfigError, match=r"rollout\.group_size=1 leaves nothing to compare"):
        load(DEMO, ["method=grpo", "rollout.group_size=1", "privileged.exclude_own_success=false"])
    load(DEMO, ["method=sdpo", "rollout.group_size=1", "privileged.exclude_own_success=false"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sdpo.top_k=null"], r"sdpo\.top_k=null: the policy gradient needs the sampled token"),
        (["grpo.kl_coefficient=0.04"], r"grpo\.kl_coefficient=0\.04: a mixed loss has no forward of the initial"),
        (["grpo.sampling_rounds=4"], r"reads sdpo\.sampling_rounds"),
        (["sdpo.aggregation=sequence_mean"], r"Set mixed\.aggregation"),
        (["mixed.routing=success", "mixed.weight=0.2"], r"mixed\.weight=0\.2 has no effect"),
        (["demopsd.alpha_max=0.5"], r"demopsd\.alpha_max=0\.5 has no effect with method=mixed"),
        (["opsd.beta=0.1"], r"opsd\.beta=0\.1 has no effect with method=mixed"),
        (["rollout.group_size=1"], r"rollout\.group_size=1 leaves nothing to compare"),
    ],
)
def test_a_mixed_loss_reads_the_sections_of_its_terms_alone(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(DEMO, ["method=mixed", *words])
    load(DEMO, ["method=mixed", "sdpo.divergence=reverse_kl", "grpo.clip_high=0.28"])
    load(DEMO, ["method=mixed", "mixed.distillation=demopsd", "demopsd.alpha_max=0.5", "mixed.weight=0.9"])


def test_every_setting_has_a_sentence() -> None:
    """A setting without its meaning below it is not finished."""
    folder = ROOT / "demopsd_dist" / "config"
    source = "\n".join(path.read_text() for path in [folder / "schema.py", *sorted(folder.glob("*_settings.py"))])
    fields = re.findall(r'^    (\w+): [^\n=]+ = [^\n]+\n(\s+""")?', source, flags=re.MULTILINE)
    sections = {
        item.name for item in dataclasses.fields(Config) if dataclasses.is_dataclass(getattr(Config(), item.name))
    }
    assert len(fields) > 140
    assert [name for name, sentence in fields if not sentence and name not in sections] == []


def model_at(folder: Path, leave_out: str = "") -> Path:
    folder.mkdir()
    for path in MODEL_DIR.iterdir():
        if path.name != leave_out:
            (folder / path.name).symlink_to(path)
    return folder


def test_model_folder_is_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    complete = model_at(tmp_path / "complete")
    assert model_folder(load(DEMO, [f"model.path={complete}"])) == complete
    assert model_folder(load(DEMO)) == MODEL_DIR
    for missing in ("tokenizer.json", "config.json", "model.safetensors"):
        folder = model_at(tmp_path / f"no-{missing}", leave_out=missing)
        with pytest.raises(ConfigError, match=missing.replace("model.", "")):
            model_folder(load(DEMO, [f"model.path={folder}"]))
    with pytest.raises(ConfigError, match="no such folder"):
        model_folder(load(DEMO, [f"model.path={tmp_path / 'none'}"]))
    (tmp_path / "config.yaml").write_text("name: demo\n")
    with pytest.raises(ConfigError, match="its student is there when it has ended"):
        model_folder(load(DEMO, [f"model.path={tmp_path / 'student'}"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rollout.max_response_tokens=3000"], "Lower rollout.max_response_tokens to 2048 or less"),
        (["rollout.max_prompt_tokens=5000"], "alone fills the model's context of 4096"),
        (["privileged.max_tokens=4090"], "Lower privileged.max_tokens to 4032 or less"),
        (["privileged.max_tokens=100"], "the teacher must see at least the whole question"),
    ],
)
def test_lengths_must_fit_the_model(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        model_folder(load(DEMO, words))


def test_settings_are_checked_without_importing_anything_heavy() -> None:
    """A wrong setting is reported in a second; only the checks of the model import transformers, and no engine."""
    code = (
        "import sys, launch.train\n"
        "assert launch.train.main(['configs/demo.yaml', 'steps=-1', '--dry-run']) == 2\n"
        "assert launch.train.main(['configs/demo.yaml', 'model.path=/none', '--dry-run']) == 2\n"
        "heavy = {'torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert launch.train.main(['configs/demo.yaml', '--dry-run', 'data.minisci_train_size=64']) == 0\n"
        "engines = {'ray', 'vllm', 'deepspeed'} & set(sys.modules)\n"
        "assert not engines, engines"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "learner  1   0.4 CPU   0 GPU" in done.stdout


def test_a_gpu_may_be_shared_but_not_by_ranks_nor_beyond_its_memory() -> None:
    shares = ["rollout.gpus_per_worker=0.4", "rollout.gpu_memory_fraction=0.4", "learner.gpus_per_worker=0.4"]
    assert load(DEMO, [*shares, "learner.num_workers=1"]).learner.gpus_per_worker == 0.4
    with pytest.raises(ConfigError, match=r"gpu_memory_fraction=0.85 is more than rollout.gpus_per_worker=0.4"):
        load(DEMO, ["rollout.gpus_per_worker=0.4"])
    asleep = load(DEMO, ["rollout.gpus_per_worker=0.4", "rollout.sleep=true"])
    assert asleep.rollout.gpu_memory_fraction > asleep.rollout.gpus_per_worker
    with pytest.raises(ConfigError, match=r"rollout.sleep=true with rollout.ahead=1: those engines sample while"):
        load(DEMO, ["rollout.sleep=true", "rollout.ahead=1"])
    with pytest.raises(ConfigError, match=r"rollout.sleep=true with rollout.gpus_per_worker=1: no other role shares"):
        load(DEMO, ["rollout.sleep=true", "rollout.gpus_per_worker=1"])
    with pytest.raises(ConfigError, match=r"nccl refuses two workers of a copy on one GPU. Set teacher.shards=1"):
        load(DEMO, ["teacher.gpus_per_worker=0.4", "teacher.num_workers=2", "teacher.shards=2"])
    with pytest.raises(ConfigError, match=r"shards=2 does not divide teacher.num_workers=3: 2 workers share each"):
        load(DEMO, ["teacher.num_workers=3", "teacher.shards=2"])
    with pytest.raises(ConfigError, match=r"nccl refuses two ranks on one GPU. Set learner.num_workers=1"):
        load(DEMO, shares)


def test_weights_on_a_gpu_that_roles_share_need_one() -> None:
    half = ["learner.gpus_per_worker=0.5", "rollout.gpus_per_worker=0.4", "learner.num_workers=1"]
    words = [*half, "rollout.gpu_memory_fraction=0.4", "weights.transport=ipc", "teacher.gpus_per_worker=0.1"]
    assert load(DEMO, words).weights.transport is Transport.ipc
    load(DEMO, [*words, "method=grpo", "teacher.gpus_per_worker=0"])
    for word in ("learner.gpus_per_worker=1", "rollout.gpus_per_worker=0", "teacher.gpus_per_worker=0"):
        with pytest.raises(ConfigError, match=r"ipc with .*: it is for roles that share one GPU\. Give each"):
            load(DEMO, [*words, word])


def test_a_process_group_of_weights_is_of_one_kind_of_device() -> None:
    collective = "weights.transport=collective"
    assert load(DEMO, [collective]).weights.transport is Transport.collective
    load(DEMO, [collective, "learner.gpus_per_worker=1", "rollout.gpus_per_worker=1"])
    for learner, rollout in ((1, 0), (0, 1), (0.5, 0.5)):
        shares = [f"learner.gpus_per_worker={learner}", f"rollout.gpus_per_worker={rollout}", "learner.num_workers=1"]
        load(DEMO, [*shares, "rollout.gpu_memory_fraction=0.4"])
        message = (
            f"collective with learner.gpus_per_worker={learner}, rollout.gpus_per_worker={rollout}: these roles form"
        )
        with pytest.raises(ConfigError, match=message) as caught:
            load(DEMO, [*shares, "rollout.gpu_memory_fraction=0.4", collective])
        assert "\n" not in str(caught.value)
    assert publishes_on_gpus({"learner": 1, "rollout": 1, "teacher": 1})
    assert not publishes_on_gpus({"learner": 0, "rollout": 0})
    with pytest.raises(ConfigError, match=r"rollout.gpus_per_worker=1, teacher.gpus_per_worker=0"):
        publishes_on_gpus({"learner": 1, "rollout": 1, "teacher": 0})
