rule prepare:
    input:
        spec=spec("prepare"),
    output:
        "results/{run}/data/images.npy",
        "results/{run}/data/manifest.json",
        spec="results/{run}/data/spec.json",
    log:
        "logs/{run}/prepare.log",
    params:
        dataset=lambda wildcards: settings_of(wildcards).data.dataset,
        out="results/{run}/data",
    message:
        "{wildcards.run}: pack the images (progress in {log})"
    shell:
        "fewstep prepare {params.dataset} --spec {input.spec} --out {params.out} 2> {log}"
