"""The part of KubeRay's RayJob (ray.io/v1) that a job of ours may use, as a JSON schema that refuses any other field.

Field names and types are those of KubeRay 1.5's custom resource definition (ray-operator/config/crd/bases/
ray.io_rayjobs.yaml and apis/ray/v1), and of a Kubernetes pod for what stands in `template`.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
YES_OR_NO: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$"}


def record(required: str = "", **fields: Schema) -> Schema:
    return {
        "type": "object",
        "properties": fields,
        "required": required.split(),
        "additionalProperties": False,
    }


def several(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
CONTAINER = record(
    "name image resources",
    name=TEXT,
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    workingDir=TEXT,
    command=several(TEXT),
    args=several(TEXT),
    env=several(record("name", name=TEXT, value=TEXT, valueFrom={"type": "object"})),
    resources=record("limits", requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=several(record("name mountPath", name=TEXT, mountPath=TEXT, readOnly=YES_OR_NO, subPath=TEXT)),
)
VOLUME = record(
    "name",
    name=TEXT,
    persistentVolumeClaim=record("claimName", claimName=TEXT, readOnly=YES_OR_NO),
    emptyDir=record(medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
)
POD = record(
    "spec",
    metadata=record(labels=TEXTS, annotations=TEXTS),
    spec=record(
        "containers",
        containers=several(CONTAINER),
        volumes=several(VOLUME),
        nodeSelector=TEXTS,
        tolerations=several({"type": "object"}),
        serviceAccountName=TEXT,
    ),
)
HEAD = record("rayStartParams template", rayStartParams=TEXTS, serviceType=TEXT, template=POD)
WORKERS = record(
    "groupName rayStartParams template minReplicas maxReplicas",
    groupName=TEXT,
    labels=TEXTS,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts={"type": "integer", "minimum": 1},
    rayStartParams=TEXTS,
    template=POD,
)
CLUSTER = record(
    "headGroupSpec rayVersion",
    rayVersion=TEXT,
    authOptions=record("mode", mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    enableInTreeAutoscaling=YES_OR_NO,
    headGroupSpec=HEAD,
    workerGroupSpecs=several(WORKERS),
)
RAY_JOB = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=record("name", name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}, namespace=TEXT),
    spec=record(
        "entrypoint rayClusterSpec",
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        backoffLimit=COUNT,
        entrypoint=TEXT,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        entrypointResources=TEXT,
        rayClusterSpec=CLUSTER,
        runtimeEnvYAML=TEXT,
        shutdownAfterJobFinishes=YES_OR_NO,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        submitterConfig=record(backoffLimit=COUNT),
        submitterPodTemplate=POD,
        suspend=YES_OR_NO,
        ttlSecondsAfterFinished=COUNT,
    ),
)
