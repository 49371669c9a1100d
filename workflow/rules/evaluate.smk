rule extractor:
    input:
        spec=spec("extractor"),
        data=rules.prepare.output,
    output:
        spec="results/{run}/reference/extractor/spec.json",
    log:
        "logs/{run}/extractor.log",
    threads: 1
    resources:
        gpu=GPU,
    params:
        data=folder_of("data"),
        out=subpath(output.spec, parent=True),
    message:
        "{wildcards.run}: train the classifier whose features images are compared in (progress in {log})"
    shell:
        "fewstep extractor --spec {input.spec} --data {params.data} --out {params.out} 2> {log}"


rule stats:
    input:
        spec=spec("stats"),
        data=rules.prepare.output,
        extractor=trained_extractor,
    output:
        stats="results/{run}/reference/stats.npz",
        spec="results/{run}/reference/spec.json",
    log:
        "logs/{run}/stats.log",
    threads: 1
    resources:
        gpu=GPU,
    params:
        data=folder_of("data"),
        extractor=extractor_argument,
    message:
        "{wildcards.run}: measure the reference images (progress in {log})"
    shell:
        "fewstep stats {params.data} --spec {input.spec} --extractor {params.extractor} --out {output.stats} 2> {log}"


# Where evaluate.shards asks for several jobs: each extracts the features of its share.
rule evaluate_shard:
    input:
        spec=spec("evaluate"),
        samples=rules.sample.output.spec,
        stats=rules.stats.output.stats,
        extractor=trained_extractor,
    output:
        temp(touch("state/{run}/shards/evaluate/nfe{nfe}.{k}of{n}")),
    log:
        "logs/{run}/evaluate/nfe{nfe}.{k}of{n}.log",
    threads: 1
    resources:
        gpu=GPU,
    params:
        samples=subpath(input.samples, parent=True),
        extractor=extractor_argument,
        out="results/{run}/eval/nfe{nfe}",
    message:
        "{wildcards.run}: features of share {wildcards.k} of {wildcards.n} of {wildcards.nfe} network calls"
    shell:
        "fewstep evaluate {params.samples} --spec {input.spec} --reference {input.stats}"
        " --extractor {params.extractor} --shard {wildcards.k}/{wildcards.n} --out {params.out} 2> {log}"


rule evaluate:
    input:
        spec=spec("evaluate"),
        samples=rules.sample.output.spec,
        stats=rules.stats.output.stats,
        extractor=trained_extractor,
        shards=shards("evaluate"),
    output:
        spec="results/{run}/eval/nfe{nfe}/spec.json",
    log:
        "logs/{run}/evaluate/nfe{nfe}.log",
    threads: 1
    resources:
        gpu=GPU,
    params:
        samples=subpath(input.samples, parent=True),
        extractor=extractor_argument,
        out=subpath(output.spec, parent=True),
    message:
        "{wildcards.run}: evaluate the samples of {wildcards.nfe} network calls (progress in {log})"
    shell:
        "fewstep evaluate {params.samples} --spec {input.spec} --reference {input.stats}"
        " --extractor {params.extractor} --out {params.out} 2> {log}"
