# Plans are sampled and images evaluated, whichever stage made them: {source} is its folder, such as search/nfe4.
# Where `shards` asks for several jobs, each does its share, which the last one puts together.


def shards(stage):
    """Input function: the marks of the jobs that share the work."""

    def marks(wildcards):
        result, chosen = result_of(stage, wildcards)
        n = getattr(chosen, stage.name).shards
        name = f"state/{wildcards.run}/shards/{result.place}"
        return [f"{name}.{k}of{n}" for k in range(1, n + 1)] if n > 1 else []

    return marks


for stage in keys.STAGES:
    if stage.over is not None:

        rule:
            name:
                f"{stage.name}_shard"
            input:
                unpack(inputs(stage)),
                spec=f"state/{{run}}/spec/{place(stage)}.json",
            output:
                temp(touch(f"state/{{run}}/shards/{place(stage)}.{{k}}of{{n}}")),
            log:
                f"logs/{{run}}/{place(stage)}.{{k}}of{{n}}.log",
            threads: 1
            resources:
                gpu=int(stage.gpu),
            params:
                options=options(stage),
            message:
                f"{message(stage)}, share {{wildcards.k}} of {{wildcards.n}}"
            shell:
                "fewstep {params.options:q} --spec {input.spec} --shard {wildcards.k}/{wildcards.n} 2> {log}"

        rule:
            name:
                stage.name
            input:
                unpack(inputs(stage)),
                spec=f"state/{{run}}/spec/{place(stage)}.json",
                shards=shards(stage),
            output:
                spec=f"results/{{run}}/{place(stage)}/{STAMP}",
            log:
                f"logs/{{run}}/{place(stage)}.log",
            group:
                group(stage)
            threads: 1
            resources:
                gpu=int(stage.gpu),
            params:
                options=options(stage),
            message:
                message(stage)
            shell:
                "fewstep {params.options:q} --spec {input.spec} 2> {log}"
