# Instead of preparing data, training and measuring: a model of the zoo and the statistics of its dataset.
rule zoo_model:
    input:
        spec=spec("zoo"),
    output:
        "results/{run}/model/model.safetensors",
        "results/{run}/model/config.json",
        "results/{run}/model/card.json",
        "results/{run}/model/metrics.jsonl",
        spec="results/{run}/model/spec.json",
    log:
        "logs/{run}/zoo_model.log",
    wildcard_constraints:
        run=ZOO_RUNS,
    params:
        name=lambda wildcards: settings_of(wildcards).model.zoo,
        out=subpath(output.spec, parent=True),
    message:
        "{wildcards.run}: take the model from the zoo"
    shell:
        "fewstep zoo {params.name} --spec {input.spec} --out {params.out} 2> {log}"


rule zoo_stats:
    input:
        spec=spec("zoo-stats"),
    output:
        stats="results/{run}/reference/stats.npz",
        spec="results/{run}/reference/spec.json",
    log:
        "logs/{run}/zoo_stats.log",
    wildcard_constraints:
        run=ZOO_RUNS,
    params:
        name=lambda wildcards: settings_of(wildcards).model.zoo,
        extractor=lambda wildcards: settings_of(wildcards).extractor.name,
    message:
        "{wildcards.run}: take the statistics of its dataset from the zoo"
    shell:
        "fewstep zoo {params.name} --spec {input.spec} --extractor {params.extractor}"
        " --statistics {output.stats} 2> {log}"


ruleorder: zoo_model > train
ruleorder: zoo_stats > stats
