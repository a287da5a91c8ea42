"""Kubernetes: prints a JobSet that runs stages in one pod per node.

    python -m scripts.launch.kubernetes --config=configs/quickstart.py:accelerator \\
        --workdir=/shared/run --root=/app --python=python --stages=train.pretrain --nodes=4 \\
        --gpus_per_node=8 --image=REGISTRY/heartwood --claim=shared --out=run.yaml
    kubectl apply -f run.yaml

JobSet (jobset.sigs.k8s.io) creates the headless service by which pods find process 0, and restarts
all pods when one fails: a crash, an eviction (saved, 143) or a lost peer (75). A pod that refuses
its input (2) fails the whole set at once.
"""

from __future__ import annotations

import json
from typing import Any

from absl import flags

from core import entry
from core.errors import UserError
from core.processes import COORDINATOR_PORT
from scripts.launch.job import RUN_STAGE, Job, define_job_flags, deliver, out_path, read_job

# 143 is SIGTERM: the node is drained.
RETRIED = (entry.EXIT_IO_ERROR, entry.EXIT_PROCESS_LOST, entry.EXIT_INTERRUPTED, 143)
GRACE_SECS = 120    # between SIGTERM and SIGKILL, to save

_MANIFEST = """\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
spec:
  network:
    enableDNSHostnames: true
    subdomain: {name}
  failurePolicy:
    maxRestarts: {max_restarts}
    rules:
    - name: refused
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: hosts
    replicas: 1
    template:
      spec:
        completionMode: Indexed
        parallelism: {nodes}
        completions: {nodes}
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {{containerName: stages, operator: In, values: [{refused}]}}
          - action: Count
            onExitCodes: {{containerName: stages, operator: In, values: [{retried}]}}
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: {grace_secs}
            nodeSelector: {selector}
            containers:
            - name: stages
              image: {image}
              workingDir: {root}
              env:
              - {{name: HEARTWOOD_NUM_PROCESSES, value: "{nodes}"}}
              - {{name: HEARTWOOD_COORDINATOR, value: "{name}-hosts-0-0.{name}:{port}"}}
              command: [bash, -c]
              args:
              - |
{script}
              resources:
                limits: {limits}
              volumeMounts:
              - {{name: shared, mountPath: {mount}}}
              - {{name: memory, mountPath: /dev/shm}}
            volumes:
            - name: shared
              persistentVolumeClaim: {{claimName: {claim}}}
            - name: memory
              emptyDir: {{medium: Memory}}
"""


def render(job: Job, *, nodes: int, limits: dict[str, int], selector: dict[str, str], image: str,
           claim: str, mount: str, max_restarts: int) -> str:
    """The manifest.

    Args:
        limits: resources of a pod, e.g. ``{"nvidia.com/gpu": 8}``.
        selector: labels of the nodes that pods may run on.
        claim, mount: the shared disk, and its path in pods.
    """
    script = "\n".join([*job.exports(), RUN_STAGE,
                        *(f"run_stage {job.command(stage)}" for stage in job.stages)])
    return _MANIFEST.format(
        name=job.name, nodes=nodes, max_restarts=max_restarts, refused=entry.EXIT_USER_ERROR,
        retried=", ".join(map(str, RETRIED)), grace_secs=GRACE_SECS,
        selector=json.dumps(selector), image=json.dumps(image), root=json.dumps(job.root),
        port=COORDINATOR_PORT, limits=json.dumps(limits), mount=json.dumps(mount),
        claim=json.dumps(claim),
        script="\n".join(f"{'':16}{line}".rstrip() for line in script.splitlines()))


def _pairs(given: list[str]) -> dict[str, str]:
    for pair in given:
        if "=" not in pair:
            raise UserError(f"--selector={pair}", "has no value", "write --selector=label=value")
    return dict(pair.split("=", 1) for pair in given)


def main() -> dict[str, Any]:
    """Prints or writes the manifest."""
    given, job = flags.FLAGS, read_job()
    if job.workdir != given.mount and not job.workdir.startswith(f"{given.mount.rstrip('/')}/"):
        raise UserError(f"--workdir={job.workdir}", f"is not on the shared disk at {given.mount}",
                        "choose a folder under --mount")
    limits = {given.resource: given.gpus_per_node} if given.gpus_per_node else {}
    text = render(job, nodes=given.nodes, limits=limits, selector=_pairs(given.selector),
                  image=given.image, claim=given.claim, mount=given.mount,
                  max_restarts=given.max_restarts)
    return {"launcher": "kubernetes", "nodes": given.nodes, **deliver(text, out_path())}


if __name__ == "__main__":
    define_job_flags()
    flags.DEFINE_integer("nodes", 1, "Pods, one per node.", lower_bound=1)
    flags.DEFINE_integer("gpus_per_node", 0, "Accelerators of a pod.", lower_bound=0)
    flags.DEFINE_string("resource", "nvidia.com/gpu", "Their name; google.com/tpu for TPUs.")
    flags.DEFINE_multi_string("selector", [], "label=value of nodes that pods may run on.")
    flags.DEFINE_string("image", None, "Container image with the checkout in it.", required=True)
    flags.DEFINE_string("claim", None, "PersistentVolumeClaim of the shared disk.", required=True)
    flags.DEFINE_string("mount", "/shared", "Path of the shared disk in pods.")
    flags.DEFINE_integer("max_restarts", 100, "Restarts of all pods.", lower_bound=0)
    entry.run(main)
