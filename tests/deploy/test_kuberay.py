"""The RayJobs against KubeRay's own definition, made strict, and against each other and us."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from support.jobs import ROOT

from actlas.jobs.cli.app import cli
from actlas.jobs.config import resolve

FOLDER = ROOT / "deploy" / "kuberay"
FILES = ["rayjob.yaml", "rayjob-pvc.yaml"]
SCHEMA = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def parts(name: str) -> dict[str, Any]:
    """The documents of a file, by kind."""
    return {part["kind"]: part for part in yaml.safe_load_all((FOLDER / name).read_text())}


def job_of(name: str = FILES[0]) -> Any:
    return copy.deepcopy(parts(name)["RayJob"])  # so that YAML's aliases are changed one by one


def pods(job: Any) -> tuple[Any, Any]:
    cluster = json.loads(json.dumps(job))["spec"]["rayClusterSpec"]
    return cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"][
        "spec"
    ]


@pytest.mark.parametrize("name", FILES)
def test_a_ray_job_is_what_kuberay_defines(name: str) -> None:
    errors = [f"{list(e.absolute_path)}: {e.message}" for e in VALIDATOR.iter_errors(job_of(name))]
    assert errors == []


def cluster(job: Any) -> Any:
    return job["spec"]["rayClusterSpec"]


def head(job: Any) -> Any:
    return cluster(job)["headGroupSpec"]


def container(job: Any) -> Any:
    return cluster(job)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]


MUTATIONS: dict[str, Callable[[Any], object]] = {
    "a misspelt key": lambda j: j["spec"].update(backofLimit=3),
    "a number as text": lambda j: j["spec"].update(backoffLimit="3"),
    "text as a number": lambda j: head(j)["rayStartParams"].update({"num-cpus": 0}),
    "a misplaced key": lambda j: cluster(j).update(shutdownAfterJobFinishes=True),
    "no such mode": lambda j: cluster(j)["authOptions"].update(mode="tokens"),
    "a missing group name": lambda j: cluster(j)["workerGroupSpecs"][0].pop("groupName"),
    "a container's key": lambda j: container(j).update(volumeMount=[]),
    "a resource's type": lambda j: container(j)["resources"]["limits"].update(cpu=[8]),
    "an object as a list": lambda j: container(j)["env"][0].update(value=1),
    "a probe's key": lambda j: container(j).update(livenessProbe={"execute": {}}),
    "a volume's key": lambda j: head(j)["template"]["spec"]["volumes"][0]["emptyDir"].update(
        size=1
    ),
    "no specification": lambda j: j.pop("spec"),
}


@pytest.mark.parametrize("what", MUTATIONS)
def test_the_schema_finds(what: str) -> None:
    job = json.loads(json.dumps(job_of()))
    MUTATIONS[what](job)
    assert not VALIDATOR.is_valid(job)


@pytest.mark.parametrize("name", FILES)
def test_what_it_runs_is_ours(name: str, tmp_path: Path) -> None:
    """The entry point parses, reads the mounted file, and asks for the workers there can be."""
    job, config = job_of(name), parts(name)["ConfigMap"]
    verb, *arguments = shlex.split(job["spec"]["entrypoint"])[1:]
    assert verb == "extract"
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    values = command.make_context("extract", arguments).params
    (tmp_path / "run.yaml").write_text(config["data"]["run.yaml"])
    asked = resolve({}, [], tmp_path / "run.yaml")
    assert asked.plan_options().model
    assert asked.run.workers == cluster(job)["workerGroupSpecs"][0]["maxReplicas"]
    assert values["run_executor"] == "ray" and values["run_address"] == "auto"
    mounted = {m["name"]: m["mountPath"] for m in pods(job)[0]["containers"][0]["volumeMounts"]}
    assert values["config"] == f"{mounted['config']}/run.yaml"


@pytest.mark.parametrize("name", FILES)
def test_what_no_schema_knows(name: str) -> None:
    job, text = job_of(name), (FOLDER / name).read_text()
    spec = cluster(job)
    head_pod, worker_pod = pods(job)
    assert head(job)["rayStartParams"]["num-cpus"] == "0"
    assert spec["authOptions"] == {"mode": "token"}
    assert f"ray=={spec['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
    assert job["spec"]["shutdownAfterJobFinishes"] and job["spec"]["backoffLimit"] > 0
    [wait] = [
        e for e in head_pod["containers"][0]["env"] if e["name"] == "RAY_JOB_STOP_WAIT_TIME_S"
    ]
    assert head_pod["terminationGracePeriodSeconds"] > int(wait["value"])
    user = re.search(r"^USER (\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    for pod in (head_pod, worker_pod):
        [only] = pod["containers"]
        assert only["image"] == head_pod["containers"][0]["image"]
        assert {m["name"] for m in only["volumeMounts"]} <= {v["name"] for v in pod["volumes"]}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == int(user[1])
        assert only["resources"]["requests"] == only["resources"]["limits"]
    assert worker_pod["tolerations"] and worker_pod["nodeSelector"] != head_pod["nodeSelector"]
    assert not re.search(r"(KEY|TOKEN|SECRET)\w*, value:", text)


def test_the_two_differ_in_the_store_alone() -> None:
    """Of one pair of lines each: the entry point, the volume, and what the file says of itself."""
    one, other = ((FOLDER / name).read_text().splitlines() for name in FILES)
    one, other = one[one.index("kind: ConfigMap") :], other[other.index("kind: ConfigMap") :]
    differing = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    assert len(differing) == 3
    assert differing[0][0].replace("s3://BUCKET", "/data") == differing[0][1]
    assert [b.strip() for _, b in differing[1:]] == [
        "- name: data          # the store and the downloaded model",
        "persistentVolumeClaim: {claimName: actlas}",
    ]
    assert parts(FILES[1])["PersistentVolumeClaim"]["metadata"]["name"] == "actlas"


def test_the_schema_is_the_derived_one() -> None:
    """A line of its own says from what; each reference leads somewhere, each object is closed."""
    text = json.dumps(SCHEMA)
    assert "KubeRay v1.7.0" in SCHEMA["$comment"] and "Apache License 2.0" in SCHEMA["$comment"]
    assert set(re.findall(r'"#/\$defs/(\w+)"', text)) == set(SCHEMA["$defs"])
