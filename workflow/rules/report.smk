for stage in keys.STAGES:
    if stage.makes == "report":

        rule:
            name:
                stage.name
            input:
                unpack(inputs(stage)),
                spec=f"state/{{run}}/spec/{stage.name}.json",
            output:
                report(
                    f"results/{{run}}/{stage.name}/index.html",
                    category="{run}",
                    labels={"what": "report"},
                    caption="../report/report.rst",
                ),
                f"results/{{run}}/{stage.name}/metrics.json",
                spec=f"results/{{run}}/{stage.name}/{STAMP}",
            log:
                f"logs/{{run}}/{stage.name}.log",
            params:
                options=options(stage),
            message:
                message(stage)
            shell:
                "fewstep {params.options:q} --spec {input.spec} 2> {log}"
