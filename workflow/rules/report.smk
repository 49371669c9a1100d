rule report:
    input:
        spec=spec("report"),
        certificates=for_each_nfe("results/{run}/eval/nfe{nfe}/spec.json"),
        samples=for_each_nfe("results/{run}/samples/nfe{nfe}/spec.json"),
        searched=searched("results/{run}/eval/searched/spec.json"),
        composed=composed("results/{run}/eval/composed/spec.json"),
        detected=detected("results/{run}/detection/spec.json"),
        model=rules.train.output,
    output:
        report(
            "results/{run}/report/index.html",
            category="{run}",
            labels={"what": "report"},
            caption="../report/report.rst",
        ),
        "results/{run}/report/metrics.json",
        report(
            "results/{run}/report/leaderboard.csv",
            category="{run}",
            labels={"what": "leaderboard"},
            caption="../report/leaderboard.rst",
        ),
        spec="results/{run}/report/spec.json",
    log:
        "logs/{run}/report.log",
    params:
        certificates=for_each_nfe("results/{run}/eval/nfe{nfe}"),
        samples=for_each_nfe("--samples results/{run}/samples/nfe{nfe}"),
        searched=searched("results/{run}/eval/searched"),
        searched_samples=searched("--samples results/{run}/samples/searched"),
        searches=searches,
        composed=composed(
            "results/{run}/eval/composed --samples results/{run}/samples/composed"
            " --composed results/{run}/plans/composed"
        ),
        detected=detected("--detection results/{run}/detection"),
        model=folder_of("model"),
        out=subpath(output.spec, parent=True),
    message:
        "{wildcards.run}: write the report"
    shell:
        "fewstep report {params.certificates} {params.searched} {params.samples} {params.searched_samples}"
        " {params.composed} {params.searches} {params.detected} --model {params.model}"
        " --spec {input.spec} --out {params.out} 2> {log}"


rule track:
    input:
        spec=spec("track"),
        finished=rules.report.output,
    output:
        "state/{run}/tracked.json",
    log:
        "logs/{run}/track.log",
    message:
        "{wildcards.run}: show the results in MLflow"
    shell:
        "fewstep track {wildcards.run} --spec {input.spec} --out {output} 2> {log}"
