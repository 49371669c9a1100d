rule plans:
    input:
        spec=spec("plans"),
        model=rules.train.output,
    output:
        spec="results/{run}/plans/nfe{nfe}/spec.json",
    log:
        "logs/{run}/plans/nfe{nfe}.log",
    params:
        model=folder_of("model"),
        out=subpath(output.spec, parent=True),
    message:
        "{wildcards.run}: write the sampling plans of {wildcards.nfe} network calls"
    shell:
        "fewstep plans --spec {input.spec} --model {params.model} --nfe {wildcards.nfe} --out {params.out} 2> {log}"


# Where sample.shards asks for several jobs: each draws its share, which the job below puts together.
rule sample_shard:
    input:
        spec=spec("sample"),
        model=rules.train.output,
        plans=rules.plans.output.spec,
    output:
        temp(touch("state/{run}/shards/sample/nfe{nfe}.{k}of{n}")),
    log:
        "logs/{run}/sample/nfe{nfe}.{k}of{n}.log",
    threads: 1
    resources:
        gpu=GPU,
    params:
        model=folder_of("model"),
        plans=subpath(input.plans, parent=True),
        out="results/{run}/samples/nfe{nfe}",
    message:
        "{wildcards.run}: sample share {wildcards.k} of {wildcards.n} of {wildcards.nfe} network calls (progress in {log})"
    shell:
        "fewstep sample {params.model} {params.plans} --spec {input.spec} --shard {wildcards.k}/{wildcards.n}"
        " --out {params.out} 2> {log}"


# One job draws from all plans of a number of calls: starting a process costs seconds, a plan often less.
rule sample:
    input:
        spec=spec("sample"),
        model=rules.train.output,
        plans=rules.plans.output.spec,
        shards=shards("sample"),
    output:
        spec="results/{run}/samples/nfe{nfe}/spec.json",
    log:
        "logs/{run}/sample/nfe{nfe}.log",
    benchmark:
        "logs/{run}/sample/nfe{nfe}.tsv"
    threads: 1
    resources:
        gpu=GPU,
    params:
        model=folder_of("model"),
        plans=subpath(input.plans, parent=True),
        out=subpath(output.spec, parent=True),
    message:
        "{wildcards.run}: sample every plan of {wildcards.nfe} network calls (progress in {log})"
    shell:
        "fewstep sample {params.model} {params.plans} --spec {input.spec} --out {params.out} 2> {log}"
