from snakemake.utils import min_version

min_version("9.10")

import atexit
import os

from fewstep.app import leftover_jobs
from fewstep.app.clock import Clock, Job
from fewstep.checks import UserError
from fewstep.locks import Lock, take
from fewstep.pipeline import devices

if config:
    raise WorkflowError(
        "settings must stand in params.yaml, where DVC sees them, but --config or --configfile was given"
    )
if workflow.storage_settings.default_storage_provider is not None:
    raise WorkflowError(
        "results must stand in a folder that all jobs share, but --default-storage-provider was given; leave it out, "
        "and keep them in object storage with a remote of DVC (docs/cluster.md)"
    )
try:
    from fewstep.app.params import load_params

    PARAMS = load_params("params.yaml")
except UserError as error:
    raise WorkflowError(str(error))


# Jobs run in the environment that Snakemake runs in; the image is for machines without one (workflow/envs).
container: "fewstep.sif"


report: "workflow/report/workflow.rst"


wildcard_constraints:
    run="[a-z0-9][a-z0-9-]*",
    nfe=r"\d+",
    source=r"[a-z0-9_]+(/nfe\d+)?",
    k=r"\d+",
    n=r"\d+",


# What a run ends with: its report, and its place in MLflow.
rule all:
    default_target: True
    input:
        [
            file
            for run in PARAMS.dvc_runs
            for file in (
                f"results/{run}/report/index.html",
                f"state/{run}/track/spec.json",
            )
        ],


include: "workflow/rules/stage.smk"
include: "workflow/rules/images.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/gallery.smk"


localrules:
    track,


# Only the process that plans the jobs may renew specs: never one that a cluster started for a single job.
if workflow.is_main_process:
    # As many jobs of this machine use an accelerator at once as it has; a profile or --resources gpu=N may say else.
    if "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", len(devices.present()))
    RUN_LOCK = take(keys.RUN_LOCK)
    if isinstance(RUN_LOCK, Lock):
        atexit.register(RUN_LOCK.release)
        try:
            if not workflow.output_settings.dryrun:
                leftover_jobs.settle(PARAMS, logger.info)
            keys.sync_specs(PARAMS)
        except UserError as error:
            raise WorkflowError(str(error))


onstart:
    if not isinstance(RUN_LOCK, Lock):
        raise WorkflowError(
            f"another workflow must not be running in this folder, but {RUN_LOCK} is; wait for it or stop it"
        )
    if workflow.local_exec:
        os.environ.update(
            devices.slots(workflow.global_resources["gpu"].value, keys.SLOTS)
        )
        # How long it will take is said now, and after each job.
        todo = {workflow.dag.jobid(job): job for job in workflow.dag.needrun_jobs()}
        jobs = {
            name: Job(
                run=job.wildcards.get("run", ""),
                rule=job.rule.name,
                cores=job.threads,
                after=frozenset(
                    map(workflow.dag.jobid, workflow.dag.dependencies[job].keys())
                ),
            )
            for name, job in todo.items()
            if job.wildcards.get("run", "")
        }
        logger.addHandler(Clock(jobs, workflow.cores, logger.info))
