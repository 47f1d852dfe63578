"""`launch/kuberay.yaml`: a valid RayJob with the GPUs that its config claims."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from demopsd_dist.config import load
from launch._doctor_findings import locked_versions
from tests.unit.launch.rayjob_schema import RAY_JOB
from workers.cluster.placement import bundles, has_label

ROOT = Path(__file__).parents[3]
JOB: dict[str, Any] = yaml.safe_load((ROOT / "launch" / "kuberay.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]


def test_it_is_a_ray_job() -> None:
    jsonschema.Draft202012Validator(RAY_JOB).validate(JOB)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entrypont"), "x"),  # a misspelt field
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-gpus"), 0),  # these are strings
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), "1"),
        (("spec", "backoffLimit"), -1),
    ],
)
def test_the_schema_refuses_an_invalid_job(path: tuple[Any, ...], value: Any) -> None:
    job = copy.deepcopy(JOB)
    node = job
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(RAY_JOB).validate(job)


def test_it_has_the_gpus_that_its_config_claims() -> None:
    words = shlex.split(JOB["spec"]["entrypoint"])
    assert words[:3] == [".venv/bin/python", "-m", "launch.train"]
    config = load(ROOT / words[3], words[4:])
    assert config.ray_address == "auto"
    groups = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}
    assert list(groups) == ["rollout", "teacher", "learner"]
    for role, group in groups.items():
        gpus = sum(bundle.gpus for bundle in bundles(config) if bundle.role == role)
        (container,) = group["template"]["spec"]["containers"]
        each = container["resources"]["limits"]["nvidia.com/gpu"]
        assert group["rayStartParams"]["num-gpus"] == each
        assert all(has_label(group["labels"], bundle.nodes) is (bundle.role == role) for bundle in bundles(config))
        assert group["replicas"] * int(each) == gpus, role
        assert group["minReplicas"] == group["maxReplicas"] == group["replicas"], (
            "a smaller group would make the job wait for ever"
        )


def test_pods_have_shared_memory_the_data_and_their_mounts() -> None:
    for group in [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert "persistentVolumeClaim" in volumes[mounts["/data"]]


def test_it_needs_a_token_has_time_limits_and_runs_the_locked_ray() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert CLUSTER["rayVersion"] == locked_versions("gpu")["ray"].partition("+")[0]
    spec = JOB["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["activeDeadlineSeconds"]
    assert re.search(r"output_dir=/data/\w+", spec["entrypoint"]), "runs must outlive the pods"
