# The search for a plan of its own for the model: one study per number of network calls, all against one teacher.
rule teacher:
    input:
        spec=spec("teacher"),
        model=rules.train.output,
    output:
        teacher="results/{run}/reference/teacher/teacher.npz",
        spec="results/{run}/reference/teacher/spec.json",
    log:
        "logs/{run}/teacher.log",
    priority: 1  # the longest chain of jobs: others fill in beside it
    threads: 1
    resources:
        gpu=GPU,
    params:
        model=folder_of("model"),
    message:
        "{wildcards.run}: solve some noises finely, to search against (progress in {log})"
    shell:
        "fewstep teacher --model {params.model} --spec {input.spec} --out {output.teacher} 2> {log}"


rule search:
    input:
        spec=spec("search"),
        model=rules.train.output,
        teacher=rules.teacher.output.teacher,
        stats=rules.stats.output.stats,
        extractor=trained_extractor,
    output:
        "results/{run}/plans/searched/nfe{nfe}/searched.nfe{nfe}.json",
        spec="results/{run}/plans/searched/nfe{nfe}/spec.json",
    log:
        "logs/{run}/search/nfe{nfe}.log",
    benchmark:
        "logs/{run}/search/nfe{nfe}.tsv"
    priority: 1  # the longest chain of jobs: others fill in beside it
    threads: 1
    resources:
        gpu=GPU,
    params:
        model=folder_of("model"),
        extractor=extractor_argument,
        study="state/{run}/search",
        out=subpath(output.spec, parent=True),
    message:
        "{wildcards.run}: search a plan of {wildcards.nfe} network calls (progress in {log})"
    shell:
        "fewstep search --model {params.model} --nfe {wildcards.nfe} --spec {input.spec} --teacher {input.teacher}"
        " --reference {input.stats} --extractor {params.extractor} --study {params.study} --out {params.out} 2> {log}"


rule sample_searched:
    input:
        spec=spec("sample-searched"),
        model=rules.train.output,
        plans=searched_plans,
    output:
        spec="results/{run}/samples/searched/spec.json",
    log:
        "logs/{run}/sample/searched.log",
    priority: 1  # the longest chain of jobs: others fill in beside it
    threads: 1
    resources:
        gpu=GPU,
    params:
        model=folder_of("model"),
        plans=plan_paths,
        out=subpath(output.spec, parent=True),
    message:
        "{wildcards.run}: sample the searched plans (progress in {log})"
    shell:
        "fewstep sample {params.model} {params.plans} --spec {input.spec} --out {params.out} 2> {log}"


rule evaluate_searched:
    input:
        spec=spec("evaluate-searched"),
        samples=rules.sample_searched.output.spec,
        stats=rules.stats.output.stats,
        extractor=trained_extractor,
    output:
        spec="results/{run}/eval/searched/spec.json",
    log:
        "logs/{run}/evaluate/searched.log",
    priority: 1  # the longest chain of jobs: others fill in beside it
    threads: 1
    resources:
        gpu=GPU,
    params:
        samples=subpath(input.samples, parent=True),
        extractor=extractor_argument,
        out=subpath(output.spec, parent=True),
    message:
        "{wildcards.run}: evaluate the samples of the searched plans (progress in {log})"
    shell:
        "fewstep evaluate {params.samples} --spec {input.spec} --reference {input.stats}"
        " --extractor {params.extractor} --out {params.out} 2> {log}"
