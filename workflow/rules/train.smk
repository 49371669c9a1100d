rule train:
    input:
        spec=spec("train"),
        data=rules.prepare.output,
    output:
        "results/{run}/model/model.safetensors",
        "results/{run}/model/config.json",
        "results/{run}/model/card.json",
        "results/{run}/model/metrics.jsonl",
        spec="results/{run}/model/spec.json",
    log:
        "logs/{run}/train.log",
    benchmark:
        "logs/{run}/train.tsv"
    threads: workflow.cores
    resources:
        gpu=GPU,
    params:
        data=folder_of("data"),
        out=subpath(output.spec, parent=True),
        checkpoints="state/{run}/checkpoints",
    message:
        "{wildcards.run}: train the diffusion model (progress in {log})"
    shell:
        "fewstep train --spec {input.spec} --data {params.data} --out {params.out}"
        " --checkpoints {params.checkpoints} 2> {log}"
