"""The JobSet manifest of launch/gke against the schema of its API, made strict."""

import copy

import jsonschema
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from launching import TRAINING, launch


def closed(schema):
    """The JSON schema of the pydantic models, strict as the cluster is: fields that it does not know are mistakes."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "actual_instance" in schema.get("properties", {}):  # how the models write "a number or a string"
        return closed(schema["properties"]["actual_instance"])
    result = {key: closed(value) for key, value in schema.items()}
    if "properties" in result:
        result["additionalProperties"] = False
    if "anyOf" in result:
        result["anyOf"] = [option for option in result["anyOf"] if option != {"type": "null"}]
    return result


@pytest.fixture(scope="module")
def jobset_schema():
    return jsonschema.Draft202012Validator(closed(JobsetV1alpha2JobSet.model_json_schema(by_alias=True)))


def render(desk, *arguments) -> dict:
    result = launch(desk, "gke/gke.sh", "manifest", "pod.txt", *arguments)
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)


TOPOLOGIES = [
    ("v5p:4x4x8", 1, "tpu-v5p-slice", 32, 4), ("v5e:16x16", 2, "tpu-v5-lite-podslice", 64, 4),
    ("v6e:4x4", 1, "tpu-v6e-slice", 4, 4), ("v6e:2x2", 1, "tpu-v6e-slice", 1, 4),
]  # fmt: skip


@pytest.mark.parametrize(("topology", "slices", "accelerator", "hosts", "chips"), TOPOLOGIES)
def test_the_jobset_is_what_its_schema_says(desk, jobset_schema, topology, slices, accelerator, hosts, chips):
    jobset = render(desk, f"topology={topology}", f"slices={slices}", '--config.note=a "b" \\c')
    jobset_schema.validate(jobset)
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert replicated["replicas"] == slices
    assert job["parallelism"] == job["completions"] == hosts
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology.split(":")[1],
    }
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert container["command"] == ["bash", "launch/supervise.sh", "python", *TRAINING, '--config.note=a "b" \\c']
    assert "@" not in yaml.dump(jobset)


def paths(node, path=()):
    """Every key in the tree, by its path."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            yield from paths(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from paths(value, (*path, index))


def test_a_wrong_name_or_type_anywhere_in_the_jobset_would_be_found(desk, jobset_schema):
    jobset = render(desk)
    free = ("annotations", "nodeSelector", "limits")  # whose keys are the user's
    tried = 0
    for path in paths(jobset):
        for change in ("name", "type"):
            other = copy.deepcopy(jobset)
            node = other
            for key in path[:-1]:
                node = node[key]
            value = node.pop(path[-1])
            if change == "type":
                node[path[-1]] = 1 if isinstance(value, dict) else {"a": 1}
            elif path[-2:-1] and path[-2] in free:
                continue
            else:
                node[f"{path[-1]}s"] = value
            tried += 1
            assert not jobset_schema.is_valid(other), (change, path)
    assert tried > 100
