# snakemake compose: as far as the certificates of composed plans, without the report.
rule compose:
    input:
        [
            f"results/{run}/eval/composed/spec.json"
            for run in PARAMS.dvc_runs
            if specs.applies("compose", PARAMS.runs[run])
        ],


# On top of the searched plans: narrower networks at some steps, other times told to them, and the last comparison.
rule stepaware:
    input:
        spec=spec("stepaware"),
        model=rules.train.output,
        base=base_plan,
        stats=rules.stats.output.stats,
        extractor=trained_extractor,
    output:
        spec="results/{run}/plans/stepaware/nfe{nfe}/spec.json",
    log:
        "logs/{run}/stepaware/nfe{nfe}.log",
    priority: 1
    threads: 1
    resources:
        gpu=GPU,
    params:
        model=folder_of("model"),
        plan=base_plan_file,
        extractor=extractor_argument,
        study="state/{run}/stepaware/nfe{nfe}",
        out=subpath(output.spec, parent=True),
    message:
        "{wildcards.run}: search the widths of {wildcards.nfe} network calls (progress in {log})"
    shell:
        "fewstep stepaware --model {params.model} --plan {params.plan} --spec {input.spec} --reference {input.stats}"
        " --extractor {params.extractor} --study {params.study} --out {params.out} 2> {log}"


rule align:
    input:
        spec=spec("align"),
        model=rules.train.output,
        data=images_to_align,
        base=base_plan,
        narrowed=narrowed,
        stats=rules.stats.output.stats,
        extractor=trained_extractor,
    output:
        spec="results/{run}/plans/aligned/nfe{nfe}/spec.json",
    log:
        "logs/{run}/align/nfe{nfe}.log",
    priority: 1
    threads: 1
    resources:
        gpu=GPU,
    params:
        model=folder_of("model"),
        images=aligned_images,
        plan=base_plan_file,
        narrowed=narrowed_plans,
        extractor=extractor_argument,
        out=subpath(output.spec, parent=True),
    message:
        "{wildcards.run}: align the times of {wildcards.nfe} network calls (progress in {log})"
    shell:
        "fewstep align --model {params.model} --plan {params.plan} {params.narrowed} --spec {input.spec}"
        " {params.images} --reference {input.stats} --extractor {params.extractor} --out {params.out}"
        " 2> {log}"


rule compare:
    input:
        spec=spec("compose"),
        model=rules.train.output,
        plans=plans_to_compose,
        stats=rules.stats.output.stats,
        extractor=trained_extractor,
    output:
        table="results/{run}/plans/composed/composition.parquet",
        spec="results/{run}/plans/composed/spec.json",
    log:
        "logs/{run}/compose.log",
    priority: 1
    threads: 1
    resources:
        gpu=GPU,
    params:
        model=folder_of("model"),
        plans=composed_options,
        extractor=extractor_argument,
        out=subpath(output.spec, parent=True),
    message:
        "{wildcards.run}: compare the searched, narrowed and aligned plans (progress in {log})"
    shell:
        "fewstep compose --model {params.model} {params.plans} --spec {input.spec} --reference {input.stats}"
        " --extractor {params.extractor} --out {params.out} 2> {log}"


use rule sample_searched as sample_composed with:
    input:
        spec=spec("sample-composed"),
        model=rules.train.output,
        plans=rules.compare.output.spec,
    output:
        spec="results/{run}/samples/composed/spec.json",
    log:
        "logs/{run}/sample/composed.log",
    message:
        "{wildcards.run}: sample the composed plans (progress in {log})"


use rule evaluate_searched as evaluate_composed with:
    input:
        spec=spec("evaluate-composed"),
        samples=rules.sample_composed.output.spec,
        stats=rules.stats.output.stats,
        extractor=trained_extractor,
    output:
        spec="results/{run}/eval/composed/spec.json",
    log:
        "logs/{run}/evaluate/composed.log",
    message:
        "{wildcards.run}: evaluate the samples of the composed plans (progress in {log})"
