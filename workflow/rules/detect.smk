# snakemake detect: whether generated images can be told from real ones, without the report.
rule detect:
    input:
        [
            f"results/{run}/detection/spec.json"
            for run in PARAMS.dvc_runs
            if specs.applies("detect", PARAMS.runs[run])
        ],


rule tell:
    input:
        spec=spec("detect"),
        data=rules.prepare.output,
        samples=samples_to_detect,
        extractor=trained_extractor,
    output:
        "results/{run}/detection/detection.json",
        "results/{run}/detection/detection.parquet",
        spec="results/{run}/detection/spec.json",
    log:
        "logs/{run}/detect.log",
    threads: 1
    resources:
        gpu=GPU,
    params:
        samples=files_to_detect,
        data=folder_of("data"),
        features=detector_features,
        out=subpath(output.spec, parent=True),
    message:
        "{wildcards.run}: tell generated images from real ones (progress in {log})"
    shell:
        "fewstep detect {params.samples} --spec {input.spec} --data {params.data} --features {params.features}"
        " --out {params.out} 2> {log}"
