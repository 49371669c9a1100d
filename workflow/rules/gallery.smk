# Figures of a finished run for the pages of docs/: those of the papers' panels, but for the course of each search, and
# distance against calls.
rule gallery:
    input:
        "results/{run}/report/index.html",
    output:
        directory("docs/gallery/{run}"),
    log:
        "logs/{run}/gallery.log",
    localrule: True
    params:
        figures=lambda wildcards: f"results/{wildcards.run}/report/figures",
    message:
        "copy the figures of {wildcards.run} to docs/gallery"
    shell:
        """
        exec 2>{log:q}
        mkdir {output:q}
        to=$(realpath {output:q})
        cd {params.figures:q}
        find . -mindepth 2 -name '*.png' -not -name 'curves_nfe*' -exec cp --parents -t "$to" {{}} +
        if [ -e fd_vs_nfe.png ]; then cp fd_vs_nfe.png "$to"; fi
        """
