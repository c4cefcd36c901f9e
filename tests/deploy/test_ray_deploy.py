"""The manifests' structure and the commands in them. KubeRay's own schema is in no package of the registry."""

import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from safelens.cli.moderate import app

DEPLOY = Path(__file__).parents[2] / "deploy"
JOB = yaml.safe_load((DEPLOY / "kuberay/rayjob.yaml").read_text())
CLUSTER = yaml.safe_load((DEPLOY / "kuberay/raycluster.yaml").read_text())
SLURM = DEPLOY / "slurm/moderate.sbatch"


def parsed(words):
    """A command's arguments, as the command line reads them; it exits where one is wrong."""
    command = typer.main.get_command(app)
    return command.make_context("moderate", list(words)).params


def moderate(text):
    """The arguments of `safelens moderate` in a script."""
    start = text.index("safelens moderate")
    words = shlex.split(text[start:].replace("\\\n", " ").split("\n")[0])
    return parsed(words[2:])


def test_the_job_is_one_of_kuberay_and_its_command_one_of_ours():
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert set(JOB["spec"]) == {
        "entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
        "rayClusterSpec",
    }  # fmt: skip
    params = moderate(JOB["spec"]["entrypoint"])
    assert params["engine"] == "ray"
    assert params["ray_address"] == "auto"
    assert params["paths"] == ["s3://videos/manifest.parquet"]


@pytest.mark.parametrize("cluster", [JOB["spec"]["rayClusterSpec"], CLUSTER["spec"]])
def test_clusters_hold_what_the_commands_ask_for(cluster):
    assert set(cluster) == {
        "rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs",
    }  # fmt: skip
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]}
        asked, limits = (container["resources"][key] for key in ("requests", "limits"))
        assert asked["memory"] == limits["memory"]
    for group in groups[1:]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_job_fits_its_nodes():
    params = moderate(JOB["spec"]["entrypoint"])
    [group] = JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    node = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    for stage in ("screen", "deliberate"):
        most = int(params[f"{stage}_actors"].split(":")[1])
        each = max(
            params[f"{stage}_cpus"] / int(node["cpu"]),
            params[f"{stage}_gpus"] / int(node["nvidia.com/gpu"]),
        )
        assert most * each <= group["maxReplicas"]


def test_the_versions_are_those_that_are_tested():
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    version = CLUSTER["spec"]["rayVersion"]
    assert JOB["spec"]["rayClusterSpec"]["rayVersion"] == version
    assert f'"ray[data,serve]>={version.rsplit(".", 1)[0]}' in project


def test_the_slurm_script_parses_and_its_command_is_one_of_ours():
    subprocess.run(["bash", "-n", SLURM], check=True)
    params = moderate(SLURM.read_text())
    assert params["engine"] == "ray"
    assert params["ray_address"] == "$address"
    assert {"#SBATCH --requeue", "#SBATCH --ntasks-per-node=1"} <= set(
        SLURM.read_text().splitlines()
    )
